"""A picture as a net sees it. Nothing of this repository is used: exported examples have these lines, too."""

import numpy
from PIL import Image, ImageOps


def as_seen(image: Image.Image) -> Image.Image:
    """RGB, upright as its camera was held (EXIF), 16 bits of grey scaled to 8, on white where it is transparent."""
    ImageOps.exif_transpose(image, in_place=True)  # else it copies every image
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((numpy.asarray(image).clip(0, 65535) // 257).astype(numpy.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def square(image: Image.Image, image_size: int) -> Image.Image:
    """The shorter side resized to image_size, then the centre cut out."""
    if image.size == (image_size, image_size):
        return image
    ratio = image_size / min(image.size)
    wide, high = (max(image_size, round(side * ratio)) for side in image.size)
    left, top = (wide - image_size) // 2, (high - image_size) // 2
    resized = image.resize((wide, high), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + image_size, top + image_size))
