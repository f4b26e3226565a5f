"""Every operation of random augmentation computes what torchvision does with one image, for each image of a batch."""

import pytest
import torch
from torchvision.transforms import v2

from data.operations import OPERATIONS

SPACES = {
    "TrivialAugmentWide": (v2.TrivialAugmentWide(), 31),
    "RandAugment": (v2.RandAugment(), 31),
    "AutoAugment": (v2.AutoAugment(), 10),
}
CASES = [
    pytest.param(space, name, id=f"{space}-{name}")
    for space, (transform, _) in SPACES.items()
    for name in transform._AUGMENTATION_SPACE
]


@pytest.fixture(scope="module")
def photographs():
    """Smooth colours with edges, dark, bright, flat and of odd sides: uint8 [6, 3, 29, 40]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 3, 5, 6, generator=generator)
    images = 255 * torch.nn.functional.interpolate(coarse, size=(29, 40), mode="bilinear")
    images[1] *= 0.3
    images[2] = 255 - 0.3 * images[2]
    images[3] = 77
    images[4, :, 8:20, 10:30] = torch.rand(3, 12, 20, generator=generator) * 255
    return images.to(torch.uint8)


@pytest.mark.parametrize(("space", "name"), CASES)
def test_an_operation_is_torchvisions_at_every_strength(space, name, photographs):
    transform, bins = SPACES[space]
    make, signed = transform._AUGMENTATION_SPACE[name]
    strengths = make(bins, *photographs.shape[-2:])
    strengths = torch.zeros(1) if strengths is None else strengths
    for strength in {*strengths.tolist(), *(-strengths if signed else strengths).tolist()}:
        each = torch.full((len(photographs),), strength, dtype=torch.float64)
        found = OPERATIONS[name](photographs, each)
        expected = torch.stack([apply(transform, image, name, strength) for image in photographs])
        different = found != expected
        if name in ("Color", "Sharpness"):  # blended in fp32 and cut off to whole numbers: 89.99999 is 89
            different = (found.int() - expected.int()).abs() > 1
        # a pixel exactly between two others may be either
        assert different.float().mean() <= (0.025 if name in ("ShearX", "ShearY") else 0), strength


def apply(transform, image: torch.Tensor, name: str, strength: float) -> torch.Tensor:
    return transform._apply_image_or_video_transform(image, name, strength, "nearest", {torch.Tensor: None})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_image_of_a_batch_has_its_own_strength_and_does_not_depend_on_the_others(name, channels, photographs):
    images = photographs[:, :channels]
    strengths = torch.tensor([0.05, -0.2, 0.3, 0.2, 0.5, 0.9], dtype=torch.float64)
    strengths = strengths.abs() if name == "Solarize" else strengths
    strengths = torch.arange(2.0, 8.0).double() if name == "Posterize" else strengths
    strengths = strengths * 30 if name in ("TranslateX", "TranslateY", "Rotate") else strengths
    together = OPERATIONS[name](images, strengths)
    assert together.dtype == torch.uint8
    assert together.shape == images.shape
    for i in range(len(images)):
        assert torch.equal(together[i], OPERATIONS[name](images[i, None], strengths[i, None])[0]), i
