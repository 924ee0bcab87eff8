"""Recognizes image files: by name, or by their first bytes if the name does not tell."""

from __future__ import annotations

import re

HEAD_BYTES = 32
"""The number of bytes that `is_image` looks at."""

_IMAGES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",  # the core's
    ".apng", ".mpo", ".avif", ".avifs", ".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc",
    ".j2c", ".psd", ".tga", ".ico", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi",
)  # fmt: skip
_OTHERS = (
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".html", ".htm", ".md", ".yaml", ".yml", ".toml", ".py", ".sh",
    ".cls", ".caption", ".text", ".npy", ".npz", ".pt", ".pth", ".pkl", ".safetensors", ".bin", ".zip", ".tar", ".gz",
    ".tgz", ".parquet", ".arrow", ".mds", ".mp4", ".mov", ".mp3", ".wav", ".pdf", ".ini", ".db", ".log",
)  # fmt: skip
_JUNK_FOLDERS = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "#recycle")
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|BM.{4}\0{4}|II[\x2a\x2b]\0|MM\0[\x2a\x2b]"
    rb"|....ftyp(?:avi[fs]|hei[cfsx]|hev[cmsx]|mif1|msf1|jxl )|\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51|8BPS\0[\x01\x02]|P[1-6][ \t\r\n#][0-9# \t\r\n]|qoif",
    re.DOTALL,
)


def image_by_name(name: str) -> bool | None:
    """True if a file's name is an image's, False if it is another file's, None if only its bytes can tell.

    Args:
        name: The file's name, without folders.
    """
    lower = name.lower()
    if lower.startswith("._"):  # macOS puts `._x.jpg` next to `x.jpg`
        return False
    if lower.endswith(_IMAGES):
        return True
    return False if lower.endswith(_OTHERS) or lower.startswith(".") else None


def is_image(head: bytes) -> bool:
    """True if a file that begins with these bytes is an image of a format that they identify."""
    return _MAGIC.match(head) is not None


def is_junk_folder(name: str) -> bool:
    """True if a folder of this name is an operating system's: macOS, Windows, Synology."""
    return name.lower() in _JUNK_FOLDERS


def without_image_suffix(name: str) -> str:
    """Returns a path without the suffix of an image file, if it has one; another suffix is a part of the name."""
    suffix = next((suffix for suffix in _IMAGES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]
