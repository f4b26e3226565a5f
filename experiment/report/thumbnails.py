"""Small pictures of test images, to be put into a page: what the model saw."""

import base64
import io

import torch
from PIL import Image
from torch import Tensor

import data

SIDE = 96
"""Larger images are made smaller: pixels a side."""
LOSSLESS = 32
"""Images up to this size are PNG, others JPEG."""


def thumbnails(images: data.Images | data.Files, index: list[int], image_size: int) -> dict[int, str]:
    """data: URIs of the images with these numbers. Raises UserError for a file that can no longer be read."""
    wanted = list(dict.fromkeys(index))
    if not wanted:
        return {}
    pixels = data.pixels(images, torch.tensor(wanted), image_size)
    return {number: data_uri(one) for number, one in zip(wanted, pixels, strict=True)}


def data_uri(pixels: Tensor) -> str:
    """Of an image, uint8 [H, W, C]: RGB of 3 channels, with opacity of 4; of any other number the first, in grey."""
    shown = pixels if pixels.shape[2] in (3, 4) else pixels[..., 0]
    image = Image.fromarray(shown.contiguous().numpy())
    kind = "PNG" if max(image.size) <= LOSSLESS or image.mode == "RGBA" else "JPEG"
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
