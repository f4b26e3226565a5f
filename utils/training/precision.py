"""fp32 or bf16: which of them trains a net faster on this machine, asked of a few steps."""

import copy
import statistics
import time
from typing import Literal

import torch
from torch import nn

from utils.console import say
from utils.distributed import Processes

STEPS = 3
Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
HOPELESS = 2.0
"""How many times slower a first step must be for no more to be tried: bf16 without the instructions for it."""


def choose(
    asked: Precision | Literal["auto"],
    known: Precision | None,
    model: nn.Module,
    batch_size: int,
    image_size: int,
    processes: Processes,
) -> Precision:
    """What `asked` says, fp32, bf16, or auto: measured once a run, on a process's share of a batch.

    known: what the run has been trained in before, which it goes on with.
    """
    if asked != "auto":
        return asked
    if known in PRECISIONS:
        return known
    return processes.broadcast_object(
        faster(model, max(2, batch_size // processes.world_size), image_size, processes.device)
    )


def faster(model: nn.Module, batch_size: int, image_size: int, device: torch.device) -> Precision:
    """ "fp32" or "bf16", by the median of a few steps by turns on random images; the model is left as it was."""
    images = torch.rand(batch_size, 3, image_size, image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    trials = {name: copy.deepcopy(model).train() for name in PRECISIONS}
    first = {name: _seconds(trial, images, name) for name, trial in trials.items()}
    taken: dict[Precision, list[float]] = {name: [] for name in trials}
    if first["bf16"] < HOPELESS * first["fp32"]:
        for _ in range(STEPS):
            for name, trial in trials.items():
                taken[name].append(_seconds(trial, images, name))
    middle = {name: statistics.median(times or [first[name]]) for name, times in taken.items()}
    best = min(middle, key=middle.__getitem__)
    shown = ", ".join(f"{name} {batch_size / seconds:.0f}" for name, seconds in middle.items())
    say(f"precision {best}: images a second in float training: {shown}")
    return best


def _seconds(model: nn.Module, images: torch.Tensor, precision: Precision) -> float:
    began = time.perf_counter()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(images)
    logits.float().square().mean().backward()
    if images.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - began
