"""Calibration: set the ranges of all quantizers from the values of the float model, on images without augmentation."""

from collections.abc import Iterable

import torch
from torch import nn

from quant.graph.views import quantizers, switch


@torch.no_grad()
def calibrate(prepared: nn.Module, images: Iterable[torch.Tensor]) -> None:
    """Let all quantizers observe the float model (eval mode, quantizers disabled), then enable them.

    images: batches [N, 3, H, W] on the model's device.
    """
    every = quantizers(prepared).values()
    switch(every, enabled=False, observing=True)
    prepared.eval()
    for batch in images:
        prepared(batch)
    for quantizer in every:
        quantizer.finish_observing()
    switch(every, enabled=True)
