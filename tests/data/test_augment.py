"""Random crops are what they say: against torchvision's, over many draws, and independent of the batch they are in."""

import pytest
import torch
from torchvision.transforms.v2 import functional

from data.augment import PAD, Center, PaddedCrop, ResizedCrop, rectangles

SIDE = 24


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def drawn_for(top: int, left: int, height: int, width: int, side: int = 32) -> torch.Tensor:
    """The numbers by which this rectangle is drawn."""
    area = (height * width / side**2 - 0.08) / 0.92
    ratio = (torch.tensor(width / height).log() / torch.tensor(4 / 3).log() + 1) / 2
    places = [0.0 if size == side else start / (side - size) for start, size in ((top, height), (left, width))]
    return torch.tensor([area, float(ratio), *places, 0.9])[:, None]


@pytest.mark.parametrize("rectangle", [(3, 5, 20, 16), (0, 0, 32, 32), (8, 2, 24, 24), (10, 20, 12, 12)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_part_of_an_image_is_resized_as_torchvision_does(rectangle, mirrored, pixels):
    augmentation = ResizedCrop(SIDE, 1.0 if mirrored else 0.0)
    found = augmentation.apply(pixels, torch.tensor([4]), drawn_for(*rectangle))[0].permute(2, 0, 1)
    image = pixels[4].permute(2, 0, 1).float()
    cut = functional.crop(image, *rectangle)
    whole_square = functional.resize(cut, [SIDE, SIDE], antialias=False)
    expected = functional.horizontal_flip(whole_square) if mirrored else whole_square
    inside = (slice(None), slice(1, -1), slice(1, -1))  # at its edges it sees the pixels beside the rectangle
    assert torch.allclose(found[inside], expected[inside], atol=0.05)


def test_rectangles_are_of_all_sizes_and_everywhere_and_never_leave_the_image():
    drawn = ResizedCrop(SIDE, 0.5).draw(20_000, torch.Generator().manual_seed(0))
    top, left, bottom, right = rectangles(drawn, 30, 40)
    assert min(top.min(), left.min()) >= 0
    assert bottom.max() <= 30.001
    assert right.max() <= 40.001
    share, ratio = (bottom - top) * (right - left) / 1200, (right - left) / (bottom - top)
    assert 0.07 < share.min() < 0.1
    assert share.max() > 0.95
    assert (ratio < 1).float().mean() == pytest.approx(0.5, abs=0.15)
    assert ratio.min() > 0.74
    assert (drawn[4] < 0.5).float().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("augmentation", [Center(SIDE), PaddedCrop(SIDE, 0.5), ResizedCrop(SIDE, 0.5)], ids=str)
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
