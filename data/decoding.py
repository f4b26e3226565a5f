"""From an image file to the square of pixels that a model sees."""

import contextlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy
import torch
from PIL import Image, UnidentifiedImageError

from data.image_files import PNG, formats, silence_pillow, without_metadata
from utils.errors import UserError, joined_lines
from utils.image_input import keep_only_orientation, resize_and_crop, upright

LARGE = 64
"""Larger images, in pixels a side, are photographs: cut out of the middle, and in training out of any place."""
MEGAPIXELS = 100
"""The largest image that is read."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ORIENTATION = 0x0112
"""The tag of EXIF data that says how an image is to be turned; 1: not at all."""
NEARLY_BLACK = 4095
"""Grey images of 16 bits in which nothing is brighter would be shown in at most 16 of 256 greys."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image file becomes the square that a model sees: data.resize, crop, interpolation and channels."""

    image_size: int
    resize: int
    crop: str = "center"
    interpolation: str = "bilinear"
    channels: int = 3

    def of_training(self) -> "Preprocessing":
        """Of training images: larger squares, as far as they are resized, of which parts are drawn."""
        return replace(self, image_size=self.resize) if self.image_size > LARGE else self

    @property
    def bytes(self) -> int:
        """Of one image in memory."""
        return self.channels * self.image_size**2


def preprocessing(
    image_size: int,
    channels: int = 3,
    resize: int | None = None,
    crop: str | None = None,
    interpolation: str | None = None,
) -> Preprocessing:
    """What the keys of FileOptions ask for. Raises UserError if nothing of that size can be cut out."""
    usual = image_size if image_size <= LARGE or crop == "squash" else round(image_size * 8 / 7)
    if resize is not None and resize < image_size:
        raise UserError(f"data.resize: {resize} is less than data.image_size, {image_size}, which is cut out of it")
    return Preprocessing(image_size, resize or usual, crop or "center", interpolation or "bilinear", channels)


def normalization(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of photographs: ImageNet's; of grey, their average; of alpha, a half."""
    if channels == 1:
        return (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)
    return (*IMAGENET_MEAN, 0.5)[:channels], (*IMAGENET_STD, 0.5)[:channels]


def open_image(path: Path, channels: int = 3) -> Image.Image:
    """An image file in 1, 3 or 4 channels, as people see it.

    Raises UserError, which names it, if it is none or too large.
    """
    try:
        silence_pillow()
        # opened by its name, an uncompressed TIFF would not be turned: Pillow maps it into memory
        with open(path, "rb") as file:
            return _read(file, channels)
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a readable image (of no format that Pillow knows)") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path}: not a readable image (more than {MEGAPIXELS} megapixels: make it smaller)") from None
    except OSError as error:  # of the system, such as a link to nothing, or of Pillow
        raise UserError(f"{path}: not a readable image ({error.strerror or joined_lines(error)})") from None
    except Exception as error:  # Pillow raises SyntaxError, ValueError, struct.error, ... by its format
        raise UserError(f"{path}: not a readable image ({joined_lines(error)})") from None


def _read(file: BinaryIO, channels: int) -> Image.Image:
    try:
        return _shown(file, channels)
    except Image.DecompressionBombError:
        raise
    except Exception:
        file.seek(0)
        content = file.read()
        if not content.startswith(PNG):
            raise
    return _shown(io.BytesIO(without_metadata(content)), channels)


def _shown(file: BinaryIO, channels: int) -> Image.Image:
    with Image.open(file, formats=formats()) as image:
        if image.width * image.height > MEGAPIXELS * 1e6:
            raise Image.DecompressionBombError
        keep_only_orientation(image)
        _check_brightness(image)
        return upright(image, channels)


def _check_brightness(image: Image.Image) -> None:
    """Raise ValueError for numbers of 12 bits, say, in an image of 16: nearly black, where 65535 is white."""
    if image.mode[0] == "I" and tuple(getattr(image, "tag_v2", {}).get(258, ())) != (12,):
        most = int(numpy.asarray(image).max())
        if 0 < most <= NEARLY_BLACK:
            raise ValueError(
                f"no number in its {image.mode[2:4] or 32} bits is above {most}, and 65535 is white: scale it"
            )


def square(path: Path, asked: Preprocessing) -> numpy.ndarray:
    """The square that a model sees of an image file, uint8 [S, S, C]. Raises UserError as open_image does."""
    image = open_image(path, asked.channels)
    found = resize_and_crop(image, asked.image_size, asked.resize, asked.crop, asked.interpolation)
    return _pixels(found, asked.channels)


def whole(path: Path, channels: int = 3) -> numpy.ndarray:
    """The pixels of open_image, uint8 [H, W, C], to the bit, but of most JPEGs in less time."""
    found = _usual_jpeg(path) if channels == 3 else None
    return _pixels(open_image(path, channels), channels) if found is None else found


def _pixels(image: Image.Image, channels: int) -> numpy.ndarray:
    return numpy.asarray(image).reshape(image.height, image.width, channels)


def _usual_jpeg(path: Path) -> numpy.ndarray | None:
    """The pixels of a sound JPEG in grey or RGB that is not to be turned, uint8 [H, W, 3]; None of any other file.

    torchvision has announced the removal of its decoders; up to then, this is faster than Pillow.
    """
    with contextlib.suppress(ImportError, OSError, RuntimeError):  # open_image says what is wrong with the file
        from torchvision.io import ImageReadMode, decode_jpeg  # here: seconds to import, which few runs need

        content = bytearray(path.read_bytes())
        if _is_usual(content):
            planes = decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), ImageReadMode.RGB)
            return planes.permute(1, 2, 0).numpy()
    return None


def _is_usual(content: bytearray) -> bool:
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            small = image.width * image.height <= MEGAPIXELS * 1e6
            return small and image.mode in ("L", "RGB") and image.getexif().get(ORIENTATION, 1) == 1
    except Exception:  # Pillow raises anything
        return False
