"""Images are upright RGB squares, their shorter side resized and their centre cropped."""

import numpy
import pytest
from PIL import Image

from utils import image_input


def array(image: Image.Image) -> numpy.ndarray:
    return numpy.asarray(image)


def test_transparency_is_white():
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    found = image_input.upright_rgb(image)
    assert found.mode == "RGB"
    assert [found.getpixel(at) for at in ((0, 0), (1, 1))] == [(10, 20, 30), (255, 255, 255)]


def test_16_bit_grey_is_scaled_not_clipped():
    image = Image.fromarray(numpy.array([[0, 257, 257 * 128, 65535]], numpy.uint16))
    assert array(image_input.upright_rgb(image))[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_an_image_is_rotated_as_its_exif_data_says():
    image = Image.new("RGB", (4, 2))
    image.getexif()[0x0112] = 6
    assert image_input.upright_rgb(image).size == (2, 4)


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (20, 90), (33, 47), (8, 8)])
def test_every_image_becomes_a_square(size):
    assert image_input.resize_and_crop(Image.new("RGB", size), 32).size == (32, 32)


def test_the_centre_is_cropped():
    pixels = numpy.zeros((8, 16, 3), numpy.uint8)
    pixels[:, 4:12] = 200
    assert (array(image_input.resize_and_crop(Image.fromarray(pixels), 8)) == 200).all()
    square = Image.fromarray(pixels[:, :8])
    assert image_input.resize_and_crop(square, 8) is square
