"""Make archives of generated pictures for tests."""

import io
import tarfile
import zipfile

from conftest import paint
from support.listing import listed


def pictures_of(folder, count=8, size=(100, 80)):
    """Paint `count` pictures of different sizes into a folder; returns their bytes by name."""
    for index in range(count):
        paint(folder / f"{index:03}.jpg", index, (size[0] + index, size[1] + index))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def make_tar(path, members, mode="w", **options):
    """Write a tar of (name, bytes) or (TarInfo, bytes) pairs; returns its path."""
    with tarfile.open(path, mode, **options) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def make_zip(path, members, method=zipfile.ZIP_STORED):
    """Write a zip of (name, bytes) pairs; returns its path."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def make_archive(path, members):
    """Write an archive of the kind that its suffix names: a zip, a plain tar or a gzip tar; returns its path."""
    if path.suffix == ".zip":
        return make_zip(path, members, zipfile.ZIP_DEFLATED)
    return make_tar(path, members, "w" if path.suffix == ".tar" else "w:gz")


def faults_of(source):
    """List a source; returns the faults by key of the samples that have one."""
    return {sample.key: sample.fault for sample in listed(source).samples if sample.fault}


def with_captions(pictures, folder=""):
    """Yield the members of a WebDataset tar: for each picture the image and its caption in a .txt."""
    for name, data in pictures.items():
        yield f"{folder}{name}", data
        yield f"{folder}{name.removesuffix('.jpg')}.txt", f"picture {name}".encode()
