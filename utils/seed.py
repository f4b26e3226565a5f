"""Random numbers that depend only on the seed, the process, the epoch and the step.

So a checkpoint need not store the states of generators: they follow from the position in the run.
"""

import os
import random

import numpy
import torch


def derive_seed(*numbers: int) -> int:
    """A 32-bit seed from several integers. Similar integers give unrelated seeds."""
    return int(numpy.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1)[0])


def seed_all(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch, for the initial weights.

    deterministic: use deterministic kernels on accelerators.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Noise:
    """The random generators of training, except those of the data.

    shared: the same in every process (for GradBoost's noise: gradients are the same in all processes, too). own:
    different in every process (for DoReFa's noise on the gradients of a process). Both are on `device`.
    """

    def __init__(self, seed: int, rank: int, device: torch.device):
        self.seed, self.rank, self.device = seed, rank, device
        self.shared, self.own = torch.Generator(device), torch.Generator(device)

    def at(self, epoch: int, step: int) -> None:
        """Set both generators, and those of Python, NumPy and torch (dropout), to their state at this step."""
        self.shared.manual_seed(derive_seed(self.seed, 1, epoch, step))
        self.own.manual_seed(derive_seed(self.seed, 2, epoch, step, self.rank))
        global_seed = self._global_seed(epoch, step, self.rank)
        random.seed(global_seed)
        numpy.random.seed(global_seed)
        torch.default_generator.manual_seed(global_seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(global_seed)

    def seed_of_first(self, epoch: int, step: int) -> int:
        """The seed of torch's generators in the first process at this step, which is that of a run of one process."""
        return self._global_seed(epoch, step, 0)

    def _global_seed(self, epoch: int, step: int, rank: int) -> int:
        return derive_seed(self.seed, 3, epoch, step, rank)
