"""How long a training will take on this machine, from a step or two, so that a run can say so before it starts."""

import copy

import torch
from torch import nn

from utils.training.precision import Precision, timed_step

FEW = 4
"""Images of the first trial. All of a batch are tried where that takes less than `PATIENCE` seconds by it."""
PATIENCE = 1.0


def seconds_of_step(
    model: nn.Module, images: int, image_size: int, device: torch.device, precision: Precision, channels: int = 3
) -> float:
    """Seconds of a forward and a backward pass in float, of random images. The model is not changed."""
    few = min(FEW, images)
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
        trial = copy.deepcopy(model).to(device).to(memory_format=torch.channels_last).train()
        batch = torch.rand(images, channels, image_size, image_size, device=device)
        batch = batch.contiguous(memory_format=torch.channels_last)
        seconds = _second_step(trial, batch[:few], precision) * images / few
        return _second_step(trial, batch, precision) if few < images and seconds < PATIENCE else seconds


def _second_step(trial: nn.Module, batch: torch.Tensor, precision: Precision) -> float:
    """The first one allocates memory and prepares kernels."""
    return [timed_step(trial, batch, precision) for _ in range(2)][1]
