"""Images are what Pillow can read, wherever they are under a class's folder; everything else is counted."""

import os
import shutil
import struct
import zlib

import numpy
import pytest
from PIL import Image

from data import image_files
from data.decoding import open_image
from data.image_files import find, leftovers
from utils.errors import UserError


def picture(path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numpy.full((6, 8, 3), 90, numpy.uint8)).save(path, kind)


def names(folder) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find(folder).images]


def test_images_are_found_by_what_they_are_in_the_order_of_their_paths(tmp_path):
    kinds = {"9.JPG": "JPEG", "IMG_3": "JPEG", "a/b/1.jfif": "JPEG", "a/2.avif": "AVIF", "b.tga": "TGA", "b/0": "PNG"}
    for name, kind in kinds.items():
        picture(tmp_path / name, kind)
    (tmp_path / "notes.txt").write_text("0 0.5 0.5\n")
    (tmp_path / "a" / "film.MOV").write_bytes(bytes(100))
    (tmp_path / "words").write_text("Name: not an image\nImage size (x*y): 8*8\n")
    (tmp_path / ".hidden").mkdir()
    picture(tmp_path / ".hidden" / "0.png", "PNG")
    assert names(tmp_path) == ["9.JPG", "IMG_3", "a/2.avif", "a/b/1.jfif", "b/0", "b.tga"]
    assert find(tmp_path).others == {".txt": 1, ".mov": 1, "without ending": 1}


@pytest.mark.parametrize("ending", [".eps", ".h5", ".mpg", ".wmf"])
def test_what_pillow_cannot_decode_itself_is_no_image(ending, tmp_path):
    starts = {
        ".eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
        ".mpg": b"\0\0\1\xb3" + bytes(9),
    }
    (tmp_path / f"0{ending}").write_bytes(starts.get(ending, b"\x89HDF\r\n\x1a\n" + bytes(99)))
    assert find(tmp_path).others == {ending: 1}
    if ending == ".eps":  # Pillow would have Ghostscript run it
        shutil.copyfile(tmp_path / "0.eps", tmp_path / "0.jpg")
        with pytest.raises(UserError, match="not a readable image"):
            open_image(tmp_path / "0.jpg")


def test_links_are_followed_once(tmp_path):
    picture(tmp_path / "train" / "a" / "0.png", "PNG")
    picture(tmp_path / "train" / "b" / "1.png", "PNG")
    picture(tmp_path / "elsewhere" / "2.png", "PNG")
    a = tmp_path / "train" / "a"
    for name, target in (("loop", a), ("up", tmp_path / "train"), ("x", tmp_path / "elsewhere"), ("y", a / "x")):
        (a / name).symlink_to(target)
    (a / "itself").symlink_to(a / "itself")
    assert names(a) == ["0.png", "x/2.png"]


def test_a_broken_link_is_named_when_it_is_read_and_a_pipe_never_is(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    assert names(tmp_path) == ["gone.png"]
    with pytest.raises(UserError, match=r"gone\.png: not a readable image \(No such file or directory\)$"):
        open_image(tmp_path / "gone.png")
    assert find(tmp_path).others == {".png": 1}


def test_files_of_trusted_suffixes_are_not_opened_to_find_them(tmp_path, monkeypatch):
    picture(tmp_path / "0.jpg", "JPEG")
    monkeypatch.setattr(image_files, "_is_identified", lambda entry: pytest.fail("opened"))
    assert names(tmp_path) == ["0.jpg"]


def test_leftovers_are_a_line_however_many_and_whatever_they_are_called():
    found = {f"c{i}": image_files.Counter({".txt": 2}) for i in range(9)} | {"whole": image_files.Counter()}
    assert leftovers({"a": image_files.Counter({".txt": 3, ".mov": 1})}) == "3 .txt, 1 .mov in class a"
    assert leftovers(found).endswith("2 .txt in class c4; and more in 4 classes")
    assert leftovers({"a\x1b[2J\n": image_files.Counter({f".{i}\n": 1 for i in range(9)})}) == (
        r"1 .0\x0a, 1 .1\x0a, 1 .2\x0a, 1 .3\x0a, 1 .4\x0a, 4 others in class a\x1b[2J\x0a"
    )
    assert leftovers({"whole": image_files.Counter()}) == ""


def exif(*entries: bytes) -> bytes:
    return b"MM\0*" + struct.pack(">IH", 8, len(entries)) + b"".join(entries) + bytes(4) + struct.pack(">d", 1.5)


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack(">HHI", tag, kind, count) + value


TURNED = entry(0x0112, 3, 1, struct.pack(">HH", 6, 0))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("data", "turned"),
    [
        (exif(TURNED, entry(0x0132, 12, 1, struct.pack(">I", 38))), True),  # a date in floating point
        (exif(entry(0x010F, 2, 2**31, struct.pack(">I", 2**31)), TURNED), True),  # text beyond the end
        (exif(TURNED, entry(0x8769, 4, 1, struct.pack(">I", 2**31))), True),  # a directory that is nowhere
        (exif(entry(0x0112, 2, 9, struct.pack(">I", 8))), False),
        (exif(entry(0x0112, 3, 1, struct.pack(">HH", 77, 0))), False),
        (exif(TURNED)[:20], False),
        (b"MM\0*nothing of the kind", False),
        (b"", False),
    ],
)
def test_an_image_with_damaged_metadata_is_read_and_turned_by_its_orientation_alone(kind, data, turned, tmp_path):
    image = Image.effect_noise((16, 8), 60).convert("RGB")
    image.save(tmp_path / "0", kind, exif=b"Exif\0\0" + data)
    assert open_image(tmp_path / "0").size == ((8, 16) if turned else (16, 8))


@pytest.mark.parametrize("name", ["0.png", "without ending"])
@pytest.mark.parametrize(
    ("kind", "body", "is_damaged"),
    [
        (b"tEXt", b"Comment\0taken in May", True),
        (b"zTXt", b"XML\0\0" + zlib.compress(bytes(2**21)), False),  # more text than Pillow reads
        (b"pHYs", b"\0", False),
        (b"eXIf", exif(TURNED), True),
        (b"fcTL", b"film", False),
    ],
)
def test_a_png_with_damaged_metadata_is_read(kind, body, is_damaged, name, tmp_path):
    picture(tmp_path / name, "PNG")
    content, code = (tmp_path / name).read_bytes(), zlib.crc32(kind + body) ^ is_damaged
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", code)
    turned = struct.pack(">I", len(exif(TURNED))) + b"eXIf" + exif(TURNED)
    turned += struct.pack(">I", zlib.crc32(turned[4:]))
    (tmp_path / name).write_bytes(content[:33] + turned + chunk + content[33:])
    assert names(tmp_path) == [name]
    assert numpy.array_equal(numpy.asarray(open_image(tmp_path / name)), numpy.full((8, 6, 3), 90))


def tiff(bits: int, values: bytes, *tags: bytes) -> bytes:
    """One row of grey pixels, uncompressed, in big-endian order."""
    numbers = {256: len(values) * 8 // bits, 257: 1, 258: bits, 259: 1, 262: 1, 277: 1, 278: 1}
    entries = [entry(tag, 3, 1, struct.pack(">HH", value, 0)) for tag, value in numbers.items()]
    entries += [entry(273, 4, 1, struct.pack(">I", 400)), entry(279, 4, 1, struct.pack(">I", len(values)))]
    return exif(*sorted([*entries, *tags])).ljust(400, b"\0") + values


def test_a_tiff_with_a_damaged_directory_is_read_and_turned(tmp_path):
    damaged = entry(0x8769, 4, 1, struct.pack(">I", 2**31)), entry(0x0132, 12, 1, struct.pack(">I", 9))
    (tmp_path / "0.tif").write_bytes(tiff(8, bytes([10, 20, 30, 40]), TURNED, *damaged))
    image = open_image(tmp_path / "0.tif")
    assert (image.size, image.getpixel((0, 3))) == ((1, 4), (40, 40, 40))


def test_an_image_above_100_megapixels_is_refused_by_name(tmp_path, recwarn):
    for side, size in ((10_001, "slightly"), (20_000, "much")):
        Image.new("1", (side, side)).save(tmp_path / f"{size}.png")
        with pytest.raises(UserError, match=rf"{size}\.png: .*more than 100 megapixels"):
            open_image(tmp_path / f"{size}.png")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    assert open_image(tmp_path / "large.png").size == (10_000, 10_000)
    assert not recwarn.list


def grey(values, dtype, path) -> list[int]:
    """The greys that an image of these numbers is read as."""
    Image.fromarray(numpy.array([values], dtype)).save(path)
    return numpy.asarray(open_image(path))[0, :, 0].tolist()


def test_numbers_of_known_range_are_scaled(tmp_path):
    assert grey([0, 257, 257 * 128, 65535], numpy.uint16, tmp_path / "0.png") == [0, 1, 128, 255]
    assert grey([0, 257, 257 * 128, 65535], numpy.int32, tmp_path / "0.tif") == [0, 1, 128, 255]
    assert grey([0, 0.2, 0.5, 1], numpy.float32, tmp_path / "1.tif") == [0, 51, 128, 255]
    assert grey([0, 20.9, 128, 255], numpy.float32, tmp_path / "2.tif") == [0, 20, 128, 255]
    assert grey([0, 0, 0, 0], numpy.uint16, tmp_path / "3.png") == [0] * 4


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 1.0, 4000.0], numpy.float32),
        ([-0.5, 0.5, 1.0], numpy.float32),
        ([0, float("nan"), 1.0], numpy.float32),
        ([0, 70000, 5], numpy.int32),
        ([-1, 60000, 5], numpy.int32),
        ([0, 100, 4095], numpy.uint16),
        ([0, 100, 255], numpy.int32),
    ],
)
def test_numbers_that_would_be_black_or_white_are_refused_in_a_line(values, dtype, tmp_path):
    with pytest.raises(UserError, match=r"^[^\n]*0\.tif: not a readable image \([^\n]*scale (it|them)\)$"):
        grey(values, dtype, tmp_path / "0.tif")


def test_white_is_4095_in_a_tiff_of_12_bits(tmp_path):
    numbers = struct.pack("<9I", 4, 1, 12, 1, 1, 200, 1, 1, 6)  # Pillow reads these in little-endian order alone
    tags = (256, 257, 258, 259, 262, 273, 277, 278, 279)
    entries = [struct.pack("<HHI", tag, 4, 1) + numbers[4 * i : 4 * i + 4] for i, tag in enumerate(tags)]
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries)
    (tmp_path / "0.tif").write_bytes(header.ljust(200, b"\0") + bytes.fromhex("000fff800010"))
    assert numpy.asarray(open_image(tmp_path / "0.tif"))[0, :, 0].tolist() == [0, 255, 127, 0]
