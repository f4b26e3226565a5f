"""An image file becomes a square as people see it and as the keys of the data section ask, or a line with its path."""

import numpy
import pytest
from PIL import Image

from data.decoding import IMAGENET_MEAN, normalization, open_image, preprocessing, square, whole
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
def test_a_square_has_its_channels_and_as_many_means(channels, tmp_path):
    Image.new("RGBA", (90, 70)).save(tmp_path / "0.png")
    assert square(tmp_path / "0.png", preprocessing(32, channels)).shape == (32, 32, channels)
    assert [len(values) for values in normalization(channels)] == [channels] * 2
    assert normalization(1)[0][0] == pytest.approx(sum(IMAGENET_MEAN) / 3)


def smooth(wide: int, high: int) -> Image.Image:
    coarse = numpy.random.default_rng(wide).integers(0, 256, (high // 4 + 2, wide // 4 + 2, 3), dtype=numpy.uint8)
    return Image.fromarray(coarse).resize((wide, high), Image.Resampling.BICUBIC)


KINDS = {
    "grey": ("L", {}),
    "full colour": ("RGB", {"subsampling": 0, "quality": 100}),
    "half colour": ("RGB", {"subsampling": 1}),
    "quarter colour": ("RGB", {"subsampling": 2, "quality": 30}),
    "progressive": ("RGB", {"progressive": True}),
    "as rgb": ("RGB", {"keep_rgb": True}),
    "turned": ("RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
    "print": ("CMYK", {}),
}


def decoders(path, monkeypatch, channels: int = 3) -> list[numpy.ndarray | str]:
    """What `whole` finds, or its message, and what Pillow alone does."""
    found = []
    for _ in range(2):
        try:
            found.append(whole(path, channels))
        except UserError as error:
            found.append(str(error))
        monkeypatch.setattr("data.decoding._usual_jpeg", lambda path: None)
    monkeypatch.undo()
    return found


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (33, 65), (231, 117)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_both_decoders_of_jpegs_find_the_same_bits(kind, size, tmp_path, monkeypatch):
    mode, options = KINDS[kind]
    smooth(*size).convert(mode).save(tmp_path / "0.jpg", **options)
    for channels in (1, 3, 4):
        one, other = decoders(tmp_path / "0.jpg", monkeypatch, channels)
        assert one.shape == ((*size, channels) if kind == "turned" else (*size[::-1], channels))
        assert numpy.array_equal(one, other)
        assert numpy.array_equal(one.squeeze(), numpy.asarray(open_image(tmp_path / "0.jpg", channels)).squeeze())


def test_both_decoders_of_damaged_jpegs_find_the_same_bits_or_the_same_mistake(tmp_path, monkeypatch):
    path, random, messages = tmp_path / "0.jpg", numpy.random.default_rng(0), set()
    smooth(100, 75).save(path, quality=80)
    sound = path.read_bytes()
    for number in range(200):
        content = bytearray(sound)
        for place in random.integers(2, len(sound), 2):
            content[place] = random.integers(0, 256)
        path.write_bytes(content[: random.integers(10, len(sound))] if number % 3 == 0 else content)
        one, other = decoders(path, monkeypatch)
        assert one == other if isinstance(one, str) or isinstance(other, str) else numpy.array_equal(one, other)
        messages.add(one if isinstance(one, str) else "")
    assert len(messages) > 3


def test_a_usual_jpeg_is_left_to_torchvision(tmp_path, monkeypatch):
    smooth(40, 30).save(tmp_path / "0.jpg")
    monkeypatch.setattr("data.decoding.open_image", None)
    assert whole(tmp_path / "0.jpg").shape == (30, 40, 3)
    monkeypatch.setattr("data.decoding.MEGAPIXELS", 1e-4)
    with pytest.raises(TypeError):
        whole(tmp_path / "0.jpg")


def test_without_torchvisions_decoder_pillow_decodes(tmp_path, monkeypatch):
    path = tmp_path / "0.jpg"
    smooth(80, 60).save(path)
    expected = whole(path)
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    assert numpy.array_equal(whole(path), expected)
