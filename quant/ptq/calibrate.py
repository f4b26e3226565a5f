"""Calibration: ranges found in the float net, on images without augmentation, before anything is rounded."""

from collections.abc import Iterable

import torch
from torch import nn

from quant.graph.views import quantizers, switch


@torch.no_grad()
def calibrate(prepared: nn.Module, images: Iterable[torch.Tensor]) -> None:
    """Let every quantizer observe the float net (eval mode, quantizers off) on batches of images, then switch it on."""
    every = quantizers(prepared).values()
    switch(every, enabled=False, observing=True)
    prepared.eval()
    for batch in images:
        prepared(batch)
    for quantizer in every:
        quantizer.finish_observing()
    switch(every, enabled=True)
