"""Archives of generated pictures, for tests."""

import io
import tarfile
import zipfile

from conftest import paint


def pictures_of(folder, count=8, size=(100, 80)):
    """Paths and bytes of so many pictures, of different sizes."""
    for index in range(count):
        paint(folder / f"{index:03}.jpg", index, (size[0] + index, size[1] + index))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def make_tar(path, members, mode="w", **options):
    """A tar of (name, bytes), or of (TarInfo, bytes)."""
    with tarfile.open(path, mode, **options) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def make_zip(path, members, method=zipfile.ZIP_STORED):
    """A zip of (name, bytes)."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def with_captions(pictures, folder=""):
    """WebDataset's members: of each picture the image and a caption in .txt."""
    for name, data in pictures.items():
        yield f"{folder}{name}", data
        yield f"{folder}{name.removesuffix('.jpg')}.txt", f"picture {name}".encode()
