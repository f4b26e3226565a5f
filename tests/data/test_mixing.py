"""Random erasing, mixup and cutmix: rectangles and labels add up, and what is drawn is a function of the step."""

import pytest
import torch

from data.mixing import Mixing, erased

CLASSES, SIDE = 8, 32


def batches(count: int = 60, size: int = CLASSES):
    """Each image is its label, everywhere."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        labels = torch.randperm(CLASSES, generator=generator)[:size]
        yield labels.float()[:, None, None, None].expand(-1, 3, SIDE, SIDE).contiguous(), labels


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_labels_are_the_shares_of_the_two_images(mixup, cutmix):
    classes = torch.arange(CLASSES, dtype=torch.float32)
    for (images, probabilities), (_, labels) in zip(
        Mixing(mixup, cutmix, CLASSES).mixed(batches(), seed=5, first=0), batches(), strict=True
    ):
        assert torch.allclose(probabilities.sum(1), torch.ones(CLASSES))
        assert torch.allclose(images.mean((1, 2, 3)), probabilities @ classes, atol=1e-4)
        others = probabilities.clone()
        others[torch.arange(CLASSES), labels] = 0
        assert torch.equal(others.argmax(1)[others.sum(1) > 0], labels.roll(1)[others.sum(1) > 0])


def test_with_both_half_of_the_batches_get_each():
    mixed = Mixing(0.4, 1.0, CLASSES).mixed(batches(400), seed=0, first=0)
    blended = sum(len(images[0].unique()) == 1 for images, _ in mixed)
    assert 150 < blended < 260, "a rectangle leaves two values; one of no pixels, one"


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixups_shares_are_of_the_beta_distribution(alpha):
    mixed = Mixing(alpha, 0.0, CLASSES).mixed(batches(3000), seed=0, first=0)
    shares = torch.tensor(
        [
            float(probabilities[0, labels[0]])
            for (_, probabilities), (_, labels) in zip(mixed, batches(3000), strict=True)
        ]
    )
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_what_is_drawn_depends_on_the_epochs_seed_and_the_step_alone():
    mixing = Mixing(0.3, 1.0, CLASSES)
    every = [images for images, _ in mixing.mixed(batches(9), seed=5, first=0)]
    later = [*batches(9)][4:]
    for found, expected in zip(mixing.mixed(iter(later), seed=5, first=4), every[4:], strict=True):
        assert torch.equal(found[0], expected)
    assert not all(torch.equal(a, b) for (a, _), b in zip(mixing.mixed(batches(9), 6, 0), every, strict=True))


def test_a_share_of_the_images_is_erased_by_rectangles_of_all_sizes():
    drawn = torch.rand(5, 4000, generator=torch.Generator().manual_seed(0))
    images = erased(torch.ones(4000, 3, SIDE, SIDE), drawn, 0.25)
    holes = (images[:, 0] == 0).flatten(1).sum(1)
    assert torch.equal(images[:, 0], images[:, 2])
    assert (holes > 0).float().mean() == pytest.approx(0.25, abs=0.02)
    shares = holes[holes > 0] / SIDE**2
    assert 0.015 < shares.min() < 0.05
    assert 0.28 < shares.max() < 0.36
    for hole in (images[:, 0] == 0)[holes > 0]:
        down, across = hole.any(1), hole.any(0)
        assert int(hole.sum()) == int(down.sum()) * int(across.sum()), "a rectangle"
    assert torch.equal(erased(torch.ones(1, 3, SIDE, SIDE), drawn[:, :1], 0.0), torch.ones(1, 3, SIDE, SIDE))
