"""One seed for every generator."""

import random

import numpy
import torch


def seed_all(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch; return a generator of its own for data order and augmentation."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def noise(seed: int, device: torch.device) -> torch.Generator:
    """A generator on the device, for noise that training itself adds."""
    return torch.Generator(device).manual_seed(seed + 1)
