"""Calibration: ranges found in the float net, on images without augmentation, before anything is rounded."""

from collections.abc import Iterable

import torch
from torch import nn

from quant.prepare import quantizers


@torch.no_grad()
def calibrate(prepared: nn.Module, images: Iterable[torch.Tensor]) -> None:
    """Let every quantizer observe the float net (eval mode, quantizers off) on batches of images, then switch it on."""
    every = quantizers(prepared).values()
    _switch(every, enabled=False, observing=True)
    prepared.eval()
    for batch in images:
        prepared(batch)
    for quantizer in every:
        quantizer.finish_observing()
    _switch(every, enabled=True, observing=False)


def set_enabled(prepared: nn.Module, enabled: bool) -> None:
    """Switch all quantizers on, or off: the prepared net then computes as the float net does."""
    _switch(quantizers(prepared).values(), enabled, observing=False)


def _switch(every: Iterable, enabled: bool, observing: bool) -> None:
    for quantizer in every:
        quantizer.enabled.fill_(enabled)
        quantizer.observing = observing
