"""Prepare an image for a model.

Uses nothing of this project, because the source of these functions is copied into exported examples.
"""

import numpy
from PIL import Image, ImageOps


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB: rotated as its EXIF data says, 16-bit grey scaled to 8 bits, transparency over white."""
    ImageOps.exif_transpose(image, in_place=True)  # without in_place it copies every image
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((numpy.asarray(image).clip(0, 65535) // 257).astype(numpy.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def resize_and_crop(image: Image.Image, image_size: int) -> Image.Image:
    """Resize the shorter side to image_size, then crop the centre to image_size x image_size."""
    if image.size == (image_size, image_size):
        return image
    ratio = image_size / min(image.size)
    wide, high = (max(image_size, round(side * ratio)) for side in image.size)
    left, top = (wide - image_size) // 2, (high - image_size) // 2
    resized = image.resize((wide, high), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + image_size, top + image_size))
