"""Randomness by place: what is drawn at a step is a function of the seed, the process, the epoch and the step alone.

So a checkpoint need not hold the states of generators: the position in the run gives them all.
"""

import os
import random

import numpy
import torch


def mixed(*numbers: int) -> int:
    """32 bits, well mixed, from a row of integers."""
    return int(numpy.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1)[0])


def seed_all(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch: for the initial weights. deterministic: accelerators give the same bits, too."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Noise:
    """The generators that training draws from, besides the data's.

    shared: of the device, the same on every process (GradBoost's noise, on gradients that are the same, too); own: of
    the device, another on each (DoReFa's noise on a process's own gradients).
    """

    def __init__(self, seed: int, rank: int, device: torch.device):
        self.seed, self.rank, self.device = seed, rank, device
        self.shared, self.own = torch.Generator(device), torch.Generator(device)

    def at(self, epoch: int, step: int) -> None:
        """Set these, Python's, NumPy's and torch's own (dropout, say) to where they stand at a step."""
        self.shared.manual_seed(mixed(self.seed, 1, epoch, step))
        self.own.manual_seed(mixed(self.seed, 2, epoch, step, self.rank))
        everyone = mixed(self.seed, 3, epoch, step, self.rank)
        random.seed(everyone)
        numpy.random.seed(everyone)
        torch.default_generator.manual_seed(everyone)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(everyone)
