"""Random crops are what they say: against torchvision's, over many draws, and independent of the batch they are in."""

import numpy
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from data.augment import GRAIN, PAD, Center, PaddedCrop, ResizedCrop, mirrored, rectangles

SIDE = 24


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def drawn_for(top: int, left: int, height: int, width: int, side: int = 32) -> numpy.ndarray:
    """The numbers by which this rectangle is drawn."""
    area = (height * width / side**2 - 0.08) / 0.92
    ratio = (numpy.log(width / height) / numpy.log(4 / 3) + 1) / 2
    places = [0.0 if size == side else start / (side - size) for start, size in ((top, height), (left, width))]
    return numpy.array([area, ratio, *places, 0.9])


@pytest.mark.parametrize("rectangle", [(3, 5, 20, 16), (0, 0, 32, 32), (8, 2, 24, 24), (10, 20, 12, 12)])
@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_a_part_of_an_image_is_resized_as_torchvision_does(rectangle, is_mirrored, channels, interpolation, pixels):
    augmentation = ResizedCrop(SIDE, 1.0 if is_mirrored else 0.0, interpolation)
    image = numpy.ascontiguousarray(pixels[4, ..., [0, 1, 2, 0][:channels]])
    image[..., 3:] = 255
    found = augmentation.part(image, drawn_for(*rectangle))
    assert (found.dtype, found.shape) == (numpy.uint8, (SIDE, SIDE, channels))
    top, left, height, width = rectangle
    cut = Image.fromarray(image.squeeze()).crop((left, top, left + width, top + height))
    expected = numpy.asarray(functional.resize(cut, [SIDE, SIDE], functional.InterpolationMode(interpolation)))
    expected = expected.reshape(SIDE, SIDE, channels)
    expected = expected[:, ::-1] if is_mirrored else expected
    assert abs(found.astype(int) - expected).max() <= 1, "of a PIL image"


@pytest.mark.parametrize("high", [1, 3, 500])
def test_a_part_of_the_narrowest_image_is_not_empty(high):
    image = numpy.full((high, 1, 3), 7, numpy.uint8)
    for drawn in ResizedCrop(SIDE, 0.5).draw(50, torch.Generator().manual_seed(0)).T.double().numpy():
        assert (ResizedCrop(SIDE, 0.5).part(image, drawn) == 7).all()


def test_large_images_are_mirrored_some_rows_at_a_time():
    image = numpy.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=numpy.uint8)
    assert image.size > 2 * GRAIN
    assert numpy.array_equal(mirrored(image), image[:, ::-1])


def test_rectangles_are_of_all_sizes_and_everywhere_and_never_leave_the_image():
    drawn = ResizedCrop(SIDE, 0.5).draw(20_000, torch.Generator().manual_seed(0)).double().numpy()
    top, left, bottom, right = rectangles(drawn, 30, 40)
    assert min(top.min(), left.min()) >= 0
    assert bottom.max() <= 30.001
    assert right.max() <= 40.001
    share, ratio = (bottom - top) * (right - left) / 1200, (right - left) / (bottom - top)
    assert 0.07 < share.min() < 0.1
    assert share.max() > 0.95
    assert (ratio < 1).mean() == pytest.approx(0.5, abs=0.15)
    assert ratio.min() > 0.74
    assert (drawn[4] < 0.5).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("augmentation", [Center(SIDE), PaddedCrop(SIDE, 0.5)], ids=str)
def test_an_image_of_a_batch_does_not_depend_on_the_others(augmentation, pixels):
    drawn = augmentation.draw(6, torch.Generator().manual_seed(3))
    prepared, index = augmentation.prepare(pixels), torch.tensor([5, 0, 2])
    together = augmentation.apply(prepared, index, drawn[:, index])
    assert together.shape == (3, SIDE, SIDE, 3)
    for place, image in zip(together, index, strict=True):
        alone = augmentation.apply(augmentation.prepare(pixels[image, None]), torch.tensor([0]), drawn[:, image, None])
        assert torch.equal(alone[0], place)


def test_small_images_are_shifted_on_black():
    white = torch.full((1, SIDE, SIDE, 1), 255, dtype=torch.uint8)
    augmentation = PaddedCrop(SIDE, 0.0)
    found = augmentation.apply(augmentation.prepare(white), torch.tensor([0]), torch.tensor([[0], [2 * PAD], [0]]))
    expected = torch.zeros(1, SIDE, SIDE, 1, dtype=torch.uint8)
    expected[:, PAD:, :-PAD] = 255
    assert torch.equal(found, expected)
