"""The fastest engine of those that are exact: quant.engine=auto.

An engine is exact for a net if all logits of the given images equal the simulation's bit for bit. Exact ones are timed
with one image at a time, interleaved, each in the form that latency.py times.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from quant.engines.base import Engine, EngineFailed, IntegerModel
from quant.engines.convert import convert
from utils import timing

WARMUP, REPEATS = 3, 20


@dataclass
class Choice:
    """name: the fastest exact engine. milliseconds: median of each exact one. bit_equal: percent of the images, of each
    other one. failed: why the rest cannot run the net."""

    name: str = ""
    milliseconds: dict[str, float] = field(default_factory=dict)
    bit_equal: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """In one line."""
        order = sorted(self.milliseconds, key=self.milliseconds.__getitem__)
        times = ", ".join(f"{name} {self.milliseconds[name]:.2f}" for name in order)
        inexact = ", ".join(f"{name} ({share:.1f} % of logits bit-equal)" for name, share in self.bit_equal.items())
        parts = [f"engine {self.name}, the fastest exact one here; ms an image: {times}"]
        parts += [f"not exact: {inexact}"] * bool(inexact)
        return "; ".join([*parts, *self.failed.values()])


@torch.inference_mode()
def fastest(prepared: fx.GraphModule, engines: Mapping[str, Engine], images: Tensor) -> Choice:
    """The fastest of these engines that is exact for a prepared model.

    images: normalized, [N, C, H, W]. One engine has to be exact for every model, as reference is.
    """
    found, simulated = Choice(), prepared(images)
    calls = {}
    for name, engine in engines.items():
        try:
            model = convert(prepared, engine)
            equal = (model(images) == simulated).all(1)
        except EngineFailed as error:
            found.failed[name] = str(error)
            continue
        if bool(equal.all()):
            calls[name] = _call(model, images[:1])
        else:
            found.bit_equal[name] = 100 * float(equal.float().mean())
    times = timing.time_interleaved(calls, WARMUP, REPEATS, lambda count: None)
    found.milliseconds = {name: spread.median for name, spread in times.items()}
    found.name = min(found.milliseconds, key=found.milliseconds.__getitem__)
    return found


def _call(model: IntegerModel, image: Tensor) -> Callable[[], Tensor]:
    image = image.contiguous(memory_format=model.engine.layout)
    run = model.compile_for(image)
    return lambda: run(image)
