"""The policies of data.augment draw what torchvision's tables say, as often as the papers say."""

import inspect
from collections import Counter
from typing import get_args

import pytest
import torch
from torchvision.transforms import AutoAugmentPolicy, v2

from data import DataSettings
from data.policies import BINS, NAMES, POLICIES, RAND_BIN, RAND_ROUNDS, transformed
from data.registry import DATASETS

IMAGES = 40_000


def rounds(name: str, learned_on: str = "imagenet", images: int = IMAGES):
    policy = POLICIES[name](learned_on)
    return list(policy.rounds(policy.draw(images, torch.Generator().manual_seed(0)), 40, 60))


def names(operations: torch.Tensor) -> Counter:
    return Counter(NAMES[i] if i >= 0 else None for i in operations.tolist())


def test_the_setting_offers_every_policy():
    assert {*get_args(DataSettings.model_fields["augment"].annotation)} == {"none", "crop", *POLICIES}


def test_the_numbers_of_rand_and_trivial_are_torchvisions():
    rand = inspect.signature(v2.RandAugment).parameters
    assert (rand["num_ops"].default, rand["magnitude"].default) == (RAND_ROUNDS, RAND_BIN)
    for transform in (v2.RandAugment, v2.TrivialAugmentWide):
        assert inspect.signature(transform).parameters["num_magnitude_bins"].default == BINS


@pytest.mark.parametrize(("name", "count"), [("trivial", 1), ("rand", 2)])
def test_every_operation_is_as_frequent_as_the_others_and_both_ways(name, count):
    found = rounds(name)
    assert len(found) == count
    for operations, strengths in found:
        frequencies = names(operations)
        assert {*frequencies} == {*v2.RandAugment._AUGMENTATION_SPACE}
        for frequency in frequencies.values():
            assert frequency == pytest.approx(IMAGES / 14, rel=0.1)
        rotated = strengths[operations == NAMES.index("Rotate")]
        assert (rotated > 0).float().mean() == pytest.approx(0.5, abs=0.05)
        bound = {"trivial": 135.0, "rand": 9.0}[name]
        assert rotated.abs().max() == pytest.approx(bound)
        assert len(rotated.abs().unique()) == {"trivial": BINS, "rand": 1}[name]
        assert strengths[operations == NAMES.index("Posterize")].min() >= {"trivial": 2, "rand": 7}[name]


@pytest.mark.parametrize("learned_on", sorted({row.auto for row in DATASETS.values()}))
def test_auto_takes_each_pair_at_its_probabilities_and_strengths(learned_on):
    pairs = v2.AutoAugment(AutoAugmentPolicy(learned_on))._policies
    expected = Counter()
    for pair in pairs:
        for place, (name, probability, _) in enumerate(pair):
            expected[place, name] += IMAGES / len(pairs) * probability
    for place, (operations, strengths) in enumerate(rounds("auto", learned_on)):
        found = names(operations)
        for name in NAMES:
            assert found[name] == pytest.approx(expected[place, name], rel=0.1, abs=40), (place, name)
        table = v2.AutoAugment._AUGMENTATION_SPACE["Rotate"][0](10, 40, 60)
        allowed = {round(float(table[bin]), 3) for pair in pairs for name, _, bin in pair if name == "Rotate"}
        rotated = strengths[operations == NAMES.index("Rotate")].abs()
        assert {round(value, 3) for value in rotated.tolist()} <= allowed


@pytest.mark.parametrize("name", POLICIES)
def test_an_image_gets_what_is_drawn_for_it_in_whatever_batch(name):
    pixels = torch.randint(0, 256, (30, 24, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    policy = POLICIES[name]("imagenet")
    drawn = policy.draw(30, torch.Generator().manual_seed(2))
    together = transformed(policy, pixels.clone(), drawn)
    assert (together != pixels).flatten(1).any(1).float().mean() > 0.5
    for i in (0, 7, 29):
        assert torch.equal(transformed(policy, pixels[i, None].clone(), drawn[:, i, None])[0], together[i])
