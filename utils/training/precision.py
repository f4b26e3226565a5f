"""Choose the precision in which a model trains faster on this machine, fp32 or bf16, by timing a few steps."""

import copy
import statistics
import time
from typing import Literal

import torch
from torch import nn

from utils.console import say
from utils.distributed import Processes

STEPS = 3
"""Timed steps in each precision, after the first."""
Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
TOO_SLOW = 2.0
"""If the first bf16 step takes this many times longer, no more are timed: the CPU has no bf16 instructions."""


def choose(
    requested: Precision | Literal["auto"],
    previous: Precision | None,
    model: nn.Module,
    batch_size: int,
    image_size: int,
    processes: Processes,
    channels: int = 3,
) -> Precision:
    """The precision to train in. requested: fp32, bf16, or auto (the faster one).

    previous: the precision in which an interrupted run was trained so far, and which it keeps; None for a new run.
    "auto" is measured on one process's share of a batch, in the first process.
    """
    if requested != "auto":
        return requested
    if previous in PRECISIONS:
        return previous
    return processes.broadcast_object(
        faster(model, max(2, batch_size // processes.world_size), image_size, processes.device, channels)
    )


def faster(model: nn.Module, batch_size: int, image_size: int, device: torch.device, channels: int = 3) -> Precision:
    """The precision with the smaller median time of interleaved steps on random images. The model is not changed."""
    images = torch.rand(batch_size, channels, image_size, image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    trials = {name: copy.deepcopy(model).train() for name in PRECISIONS}
    first = {name: timed_step(trial, images, name) for name, trial in trials.items()}
    taken: dict[Precision, list[float]] = {name: [] for name in trials}
    if first["bf16"] < TOO_SLOW * first["fp32"]:
        for _ in range(STEPS):
            for name, trial in trials.items():
                taken[name].append(timed_step(trial, images, name))
    medians = {name: statistics.median(times or [first[name]]) for name, times in taken.items()}
    best = min(medians, key=medians.__getitem__)
    shown = ", ".join(f"{name} {batch_size / seconds:.0f}" for name, seconds in medians.items())
    say(f"precision {best}: images per second in float training: {shown}")
    return best


def timed_step(model: nn.Module, images: torch.Tensor, precision: Precision) -> float:
    """Seconds of one forward and backward pass."""
    began = time.perf_counter()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(images)
    logits.float().square().mean().backward()
    if images.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - began
