"""Check that an exported model computes what its integer model does, in batches of one, two and three images."""

from collections.abc import Callable

import torch
from torch import Tensor

COUNTS = (1, 2, 3)


@torch.inference_mode()
def check_batches(
    ours: Callable[[Tensor], Tensor],
    theirs: Callable[[Tensor], Tensor],
    image_size: int,
    tolerance: float,
    name: str,
    channels: int = 3,
) -> None:
    """Raise RuntimeError, naming the file, unless two models have the same logits for each number of images.

    tolerance: of the largest logit, for what the models compute in float; 0 for logits that are equal to the bit.
    """
    images = torch.randn(max(COUNTS), channels, image_size, image_size)
    for count in COUNTS:
        expected, found = ours(images[:count]), theirs(images[:count])
        most = tolerance * float(expected.abs().max())
        if found.shape != expected.shape or not (found - expected).abs().max() <= most:
            raise RuntimeError(
                f"{name}: the loaded model computes other logits than the model that was written (images: {count})"
            )
