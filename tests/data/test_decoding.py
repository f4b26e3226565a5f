"""An image file becomes a square as people see it and as the keys of the data section ask, or a line with its path."""

import numpy
import pytest
from PIL import Image

from data.decoding import IMAGENET_MEAN, normalization, open_image, preprocessing, squared
from utils.errors import UserError


def broken_png(path) -> None:
    """Damage that shows while it is decoded: PIL has a SyntaxError for it."""
    Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=numpy.uint8)).save(path)
    content = bytearray(path.read_bytes())
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    content[second : second + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)


def truncated_jpeg(path) -> None:
    Image.fromarray(numpy.zeros((64, 64, 3), numpy.uint8)).save(path, format="jpeg")
    path.write_bytes(path.read_bytes()[:-200])


def bomb(path) -> None:
    Image.new("1", (20_000, 20_000)).save(path)


@pytest.mark.parametrize("damage", [broken_png, truncated_jpeg, bomb])
def test_whatever_is_wrong_with_an_image_is_a_line_with_its_path(damage, tmp_path):
    damage(tmp_path / "0.png")
    with pytest.raises(UserError, match=r"^[^\n]*0\.png: not a readable image \([^\n]+\)$"):
        open_image(tmp_path / "0.png")


def on_its_side(image: Image.Image, path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def in_16_bits(image: Image.Image, path) -> None:
    Image.fromarray(numpy.asarray(image.convert("L")).astype(numpy.uint16) * 257).save(path)


def with_alpha(image: Image.Image, path) -> None:
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray(255 * (numpy.asarray(image)[..., 0] < 128).astype(numpy.uint8)))
    clear.save(path)


def palette(image: Image.Image, path) -> None:
    few = Image.fromarray((numpy.asarray(image)[..., 0] // 128).astype(numpy.uint8), mode="P")
    few.putpalette([10, 20, 30, 40, 50, 60])
    few.save(path, transparency=b"\x00\xff")


def seen(image: Image.Image, save) -> numpy.ndarray:
    """What `save` stores, as it is to be seen."""
    pixels = numpy.asarray(image)
    if save is in_16_bits:
        return numpy.repeat(numpy.asarray(image.convert("L"))[..., None], 3, 2)
    if save is with_alpha:
        return numpy.where(pixels[..., :1] < 128, pixels, 255)
    return numpy.where(pixels[..., :1] < 128, 255, (40, 50, 60)) if save is palette else pixels


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("save", [on_its_side, in_16_bits, with_alpha, palette])
def test_images_are_read_as_people_see_them(save, tmp_path):
    image = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=numpy.uint8))
    save(image, tmp_path / "0.png")
    assert numpy.array_equal(numpy.asarray(open_image(tmp_path / "0.png")), seen(image, save))


@pytest.mark.parametrize(
    ("asked", "resize"),
    [({}, 256), ({"crop": "squash"}, 224), ({"resize": 232}, 232), ({"image_size": 64}, 64), ({"image_size": 65}, 74)],
)
def test_photographs_lose_their_edges_and_small_images_do_not(asked, resize):
    assert preprocessing(**{"image_size": 224} | asked).resize == resize


def test_training_images_are_squares_to_cut_parts_out_of():
    assert preprocessing(224).of_training().image_size == 256
    assert preprocessing(32).of_training().image_size == 32
    assert preprocessing(224).of_training().bytes == 3 * 256**2


def test_what_is_cut_out_has_to_fit():
    with pytest.raises(UserError, match=r"^data.resize: 200 is less than data.image_size, 224"):
        preprocessing(224, resize=200)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_square_has_its_channels_and_as_many_means(channels):
    found = squared(Image.new("RGBA", (90, 70)).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]), preprocessing(32))
    assert (found.size, len(found.getbands())) == ((32, 32), channels)
    assert [len(values) for values in normalization(channels)] == [channels] * 2
    assert normalization(1)[0][0] == pytest.approx(sum(IMAGENET_MEAN) / 3)
