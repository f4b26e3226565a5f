"""How long a training will take on this machine, from a step or two, so that a run can say so before it starts."""

import copy
import time

import torch
from torch import nn

from utils.training.precision import Precision, timed_step

FEW = 4
"""Images of the first trial. All of a batch are tried where that takes less than `PATIENCE` seconds by it."""
PATIENCE = 1.0
STEPS = 5
"""Steps of a trial at most: on a busy machine, single ones take many times as long as most do."""


def seconds_of_step(
    model: nn.Module, images: int, image_size: int, device: torch.device, precision: Precision, channels: int = 3
) -> float:
    """Seconds of a forward and a backward pass in float, of random images. The model is not changed."""
    few = min(FEW, images)
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
        trial = copy.deepcopy(model).to(device).to(memory_format=torch.channels_last).train()
        batch = torch.rand(images, channels, image_size, image_size, device=device)
        batch = batch.contiguous(memory_format=torch.channels_last)
        seconds = _usual_step(trial, batch[:few], precision) * images / few
        return _usual_step(trial, batch, precision) if few < images and seconds < PATIENCE else seconds


def _usual_step(trial: nn.Module, batch: torch.Tensor, precision: Precision) -> float:
    """The fastest of a few steps within a second, without the first, which allocates memory and prepares kernels."""
    began, first = time.monotonic(), timed_step(trial, batch, precision)
    taken = [timed_step(trial, batch, precision)]
    while len(taken) < STEPS and time.monotonic() - began + first < PATIENCE:
        taken.append(timed_step(trial, batch, precision))
    return min(taken)
