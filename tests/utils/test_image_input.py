"""Images are upright squares of the channels asked for, resized and cropped as torchvision does it."""

import numpy
import pytest
import torch
from PIL import Image

from utils import image_input


def array(image: Image.Image) -> numpy.ndarray:
    return numpy.asarray(image)


def test_transparency_is_white():
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    found = image_input.upright(image)
    assert found.mode == "RGB"
    assert [found.getpixel(at) for at in ((0, 0), (1, 1))] == [(10, 20, 30), (255, 255, 255)]


def test_16_bit_grey_is_scaled_not_clipped():
    image = Image.fromarray(numpy.array([[0, 257, 257 * 128, 65535]], numpy.uint16))
    assert array(image_input.upright(image))[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_an_image_is_rotated_as_its_exif_data_says():
    image = Image.new("RGB", (4, 2))
    image.getexif()[0x0112] = 6
    assert image_input.upright(image).size == (2, 4)


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (20, 90), (33, 47), (8, 8)])
def test_every_image_becomes_a_square(size):
    assert image_input.resize_and_crop(Image.new("RGB", size), 32, 32).size == (32, 32)


def test_the_centre_is_cropped():
    pixels = numpy.zeros((8, 16, 3), numpy.uint8)
    pixels[:, 4:12] = 200
    assert (array(image_input.resize_and_crop(Image.fromarray(pixels), 8, 8)) == 200).all()
    square = Image.fromarray(pixels[:, :8])
    assert image_input.resize_and_crop(square, 8, 8) is square


@pytest.mark.parametrize("name", ["ResNet18_Weights", "ResNet50_Weights", "EfficientNet_B1_Weights"])
@pytest.mark.parametrize("size", [(500, 375), (301, 400), (256, 256), (97, 640)])
def test_pixels_are_those_of_torchvisions_own_transforms(name, size):
    """To the bit, with each of its sizes and interpolations, for odd sides too."""
    from torchvision import models

    image = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=numpy.uint8))
    made = getattr(models, name).DEFAULT.transforms()
    keys = made.crop_size[0], made.resize_size[0], "center", made.interpolation.value
    found = torch.from_numpy(array(image_input.resize_and_crop(image, *keys)).copy()).permute(2, 0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (made.mean, made.std))
    assert torch.allclose((found / 255 - mean) / std, made(image), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 2)])
def test_of_a_line_of_pixels_the_middle_is_seen(size):
    """Resized whole, they would take 6 GB; cut first, it has the pixels that it would have had."""
    pixels = numpy.zeros((size[1], size[0], 3), numpy.uint8)
    pixels[(size[1] - 3) // 2 :, (size[0] - 3) // 2 :] = 255
    found = image_input.resize_and_crop(Image.fromarray(pixels), 100, 200)
    short = Image.fromarray(pixels).crop(tuple(int(side) for side in _middle(size, 100)))
    assert found.size == (100, 100)
    assert (array(found) == array(image_input.resize_and_crop(short, 100, 200))).all()


def _middle(size, length: int) -> tuple[float, ...]:
    """The box of so many pixels of the longer side."""
    left, top = (max(side - length, 0) / 2 for side in size)
    return left, top, size[0] - left, size[1] - top


def test_a_squashed_image_is_seen_whole():
    pixels = numpy.zeros((20, 60, 3), numpy.uint8)
    pixels[:, :30] = 255
    found = array(image_input.resize_and_crop(Image.fromarray(pixels), 20, 20, "squash"))
    assert found.shape == (20, 20, 3)
    assert (found[:, :8] == 255).all()
    assert (found[:, 12:] == 0).all()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_an_image_has_the_channels_that_are_asked_for(channels, mode):
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    found = image_input.upright(clear, channels)
    white = {"L": 255, "RGB": (255, 255, 255), "RGBA": (10, 20, 30, 0)}
    assert (found.mode, found.getpixel((0, 0))) == (mode, white[mode])
