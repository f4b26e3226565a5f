"""Prepare an image for a model.

Uses nothing of this project, because the source of these functions is copied into exported examples.
"""

import numpy
from PIL import Image, ImageOps


def keep_only_orientation(image: Image.Image) -> None:
    """Forget the EXIF data of an opened image but for its orientation (tag 0x0112): damage elsewhere says nothing."""
    if image.format != "TIFF":  # Pillow turns a TIFF while it loads it, by all of its tags
        image.load()
    try:
        known = image.getexif().get(0x0112) in range(1, 9)
    except Exception:  # damaged data makes Pillow raise anything
        known = False
    exif = image.getexif()  # after an exception, what could be read
    for tag in list(exif):
        if tag != 0x0112 or not known:
            del exif[tag]


def in_8_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits scaled to 8. White is 65535, or 4095 in a TIFF of 12 bits; of floats 1, or 255 if one is
    larger than 1. Raises ValueError for numbers beyond that: what is white is not known."""
    values = numpy.asarray(image)
    least, most = float(values.min()), float(values.max())
    if image.mode == "F":
        white, rounded = 1.0 if most <= 1 else 255.0, numpy.rint if most <= 1 else numpy.trunc
    else:
        tags = getattr(image, "tag_v2", {})
        white, rounded = 4095.0 if tuple(tags.get(258, ())) == (12,) else 65535.0, numpy.trunc
    if not 0 <= least <= most <= white:
        raise ValueError(f"numbers from {least:g} to {most:g}, of which 0 to {white:g} can be shown: scale them")
    return Image.fromarray(rounded(values.astype(numpy.float64) * 255 / white).astype(numpy.uint8))


def upright(image: Image.Image, channels: int = 3) -> Image.Image:
    """The image rotated as its EXIF data says, more than 8 bits scaled to 8, in 1 channel (grey), 3 (RGB) or 4 (RGBA).
    In fewer than 4, what is transparent is white."""
    keep_only_orientation(image)
    ImageOps.exif_transpose(image, in_place=True)  # without in_place it copies every image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = in_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if channels < 4:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])


def resize_and_crop(
    image: Image.Image, image_size: int, resize: int, crop: str = "center", interpolation: str = "bilinear"
) -> Image.Image:
    """Resize an image, then cut out of its middle image_size x image_size, as torchvision's Resize and CenterCrop do.

    resize: to what the shorter side is resized; with crop "squash", both sides. Of an image so much longer than wide
    that it would be resized to gigabytes, the ends, which are not seen, are cut off before.
    """
    short = min(image.size)
    if crop != "squash" and resize * int(resize * max(image.size) / short) > 10**8:
        left, top = (max(side - 4 * short, 0) // 2 for side in image.size)
        image = image.crop((left, top, image.width - left, image.height - top))
    wide, high = (resize if crop == "squash" else int(resize * side / short) for side in image.size)
    if image.size != (wide, high):
        image = image.resize((wide, high), Image.Resampling[interpolation.upper()])
    if (wide, high) == (image_size, image_size):
        return image
    left, top = round((wide - image_size) / 2), round((high - image_size) / 2)
    return image.crop((left, top, left + image_size, top + image_size))
