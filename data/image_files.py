"""Which files under a folder are images: those that Pillow can read, whatever they are called."""

import contextlib
import functools
import os
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from utils.errors import UserError
from utils.names import printable

COMMON = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats whose suffixes are trusted. Files of any other suffix are opened to see what they are."""
NOT_READ = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that Pillow only recognizes or, for EPS, that it has another program run."""
PNG = b"\x89PNG\r\n\x1a\n"
"""The first bytes of a PNG."""
PILLOWS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
"""Of warnings.filters: warnings of Pillow's modules."""
SHOWN = 5
"""Classes, and endings of a class, that a message names."""


@dataclass(frozen=True)
class Found:
    """The images under a folder, in the order of their paths, and how many other files there are by their ending."""

    images: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def find(folder: Path) -> Found:
    """Search a folder and all folders in it. Hidden files and folders are passed over."""
    found = Found()
    for entry in _files(folder):
        if _is_image(entry):
            found.images.append(Path(entry.path))
        else:
            found.others[_ending(entry.name) or "without ending"] += 1
    return found


def by_name(folder: Path) -> list[os.DirEntry]:
    """What is in a folder and not hidden, in the order of the names' bytes. Raises UserError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if e.name[0] != "."), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise UserError(f"data.root: {folder}: {error.strerror}") from None


def is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder or a link to one."""
    with contextlib.suppress(OSError):  # a link to itself
        return entry.is_dir()
    return False


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that images are read in, the most frequent first."""
    Image.init()
    return *COMMON, *(name for name in Image.ID if name not in (*COMMON, *NOT_READ))


@functools.cache
def is_named_as_image(path: str | os.PathLike) -> bool:
    """Whether a file is called as images are."""
    return Path(path).suffix.lower() in trusted_suffixes()


def trusted_suffixes() -> frozenset[str]:
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in COMMON)


def silence_pillow() -> None:
    """Ignore Pillow's warnings from now on: they do not say of which file they are. Any thread may call this."""
    if PILLOWS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _files(folder: Path) -> Iterator[os.DirEntry]:
    """All files under a folder, by name. A folder that links lead to several times is read once, and its own parents
    never."""
    top = folder.resolve()
    seen = {_identity(path) for path in (top, *top.parents)}
    open_folders = [iter(by_name(folder))]
    while open_folders:
        entry = next(open_folders[-1], None)
        if entry is None:
            open_folders.pop()
        elif not is_folder(entry):
            yield entry
        elif _identity(entry.path) not in seen:
            seen.add(_identity(entry.path))
            open_folders.append(iter(by_name(Path(entry.path))))


def _identity(path: str | os.PathLike) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_image(entry: os.DirEntry) -> bool:
    if _ending(entry.name) in trusted_suffixes():
        return _is_file(entry) or not os.path.exists(entry.path)  # a broken link: named when it is to be read
    return _is_file(entry) and _is_identified(entry)


def _is_file(entry: os.DirEntry) -> bool:
    with contextlib.suppress(OSError):
        return entry.is_file()
    return False


def _is_identified(entry: os.DirEntry) -> bool:
    """Whether Pillow knows the file's format by its first bytes or, where they do not tell, by its suffix, too."""
    by_suffix = Image.registered_extensions().get(_ending(entry.name))
    candidates = [name for name in formats() if name == by_suffix or Image.OPEN[name][1] is not None]
    try:
        silence_pillow()
        with Image.open(entry.path, formats=candidates):
            return True
    except Image.DecompressionBombError:  # an image, which is refused when it is to be read
        return True
    except Exception:  # Pillow raises anything
        return _starts_as_png(entry.path)


def _starts_as_png(path: str) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(len(PNG)) == PNG
    return False


def without_metadata(content: bytes) -> bytes:
    """The chunks of a PNG that are needed to show it, and its EXIF data if they are sound.

    Pillow refuses a PNG of which any chunk is damaged, or has much text.
    """
    kept, at = [PNG], len(PNG)
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        kind, code = content[at + 4 : at + 8], int.from_bytes(content[end - 4 : end], "big")
        is_sound_exif = kind == b"eXIf" and zlib.crc32(content[at + 4 : end - 4]) == code
        if not kind[:1].islower() or kind == b"tRNS" or is_sound_exif:  # in capitals: not to be left out
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def leftovers(others: dict[str, Counter[str]]) -> str:
    """'3 .txt, 1 .mov in class a; 2 .txt in class b': the files of each class that are no images; '' if all are."""
    parts = [f"{_counts(count)} in class {printable(name)}" for name, count in others.items() if count]
    return "; ".join([*parts[:SHOWN], *([f"and more in {len(parts) - SHOWN} classes"] if len(parts) > SHOWN else [])])


def _counts(count: Counter[str]) -> str:
    listed = [f"{number} {printable(ending)}" for ending, number in count.most_common(SHOWN)]
    rest = sum(count.values()) - sum(number for _, number in count.most_common(SHOWN))
    return ", ".join([*listed, *([f"{rest} others"] if rest else [])])
