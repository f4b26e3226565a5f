"""Small pictures of images, as text."""

import base64
import io

import pytest
import torch
from PIL import Image

import data
from experiment.report.thumbnails import SIDE, data_uri, thumbnails


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGBA"), (7, "L")])
def test_a_small_image_is_kept_to_the_bit(channels, mode):
    pixels = torch.randint(0, 256, (16, 16, channels), dtype=torch.uint8)
    uri = data_uri(pixels)
    assert uri.startswith("data:image/png;base64,")
    found = torch.frombuffer(bytearray(decoded(uri).tobytes()), dtype=torch.uint8).view(16, 16, -1)
    assert decoded(uri).mode == mode
    assert torch.equal(found, pixels[..., : found.shape[2]])


def test_a_large_one_is_made_small():
    uri = data_uri(torch.randint(0, 256, (224, 224, 3), dtype=torch.uint8))
    assert uri.startswith("data:image/jpeg;base64,")
    assert decoded(uri).size == (SIDE, SIDE)
    assert len(uri) < 15_000


def test_they_are_those_of_the_numbers():
    images = data.DATASETS["fake"].load(16, 20).test
    found = thumbnails(images, [7, 3, 7], 16)
    assert list(found) == [7, 3]
    assert decoded(found[3]).tobytes() == images.pixels[3].numpy().tobytes()
    assert thumbnails(images, [], 16) == {}
