"""The peak of this CPU on an engine: the most operations a second that it reaches on any of a few large layers."""

import functools
import time

import torch

from quant.core.grid import Grid
from quant.core.integer_layer import Geometry, IntegerLayer
from quant.engines.base import Engine
from quant.engines.verify import choose_kernel, full_range, with_full_range_weights

CONVOLUTION = Geometry((1, 1), (1, 1), (1, 1))
POINTWISE = Geometry((1, 1), (0, 0), (1, 1))
LARGE = (
    (CONVOLUTION, (256, 256, 3, 3), (1, 256, 28, 28)),
    (POINTWISE, (512, 512, 1, 1), (1, 512, 28, 28)),
    (Geometry(), (1024, 1024), (512, 1024)),
)
"""(geometry, shape of the weights, shape of the input)."""
CALLS = 12


def peak(engine: Engine) -> float:
    """10^9 operations a second on as many threads as torch has now, two for each multiply-accumulate."""
    return _peak(engine, torch.get_num_threads())


@functools.lru_cache(maxsize=64)
def _peak(engine: Engine, threads: int) -> float:
    return max(_gops(engine, *shapes) for shapes in LARGE)


@torch.inference_mode()
def _gops(engine: Engine, geometry: Geometry, weight: tuple[int, ...], images: tuple[int, ...]) -> float:
    layer = with_full_range_weights(_layer(geometry, weight), 63)
    _, run, _ = choose_kernel(engine, layer)
    with engine.running():
        x = engine.to_native(layer.x)(full_range(layer.x, images))
        seconds = min(_seconds(run, x) for _ in range(CALLS))
    macs = torch.Size(weight).numel() * torch.Size(images).numel() // images[1]
    return 2e-9 * macs / seconds


def _seconds(run, x) -> float:
    began = time.perf_counter()
    run(x)
    return time.perf_counter() - began


def _layer(geometry: Geometry, weight: tuple[int, ...]) -> IntegerLayer:
    x = Grid(torch.tensor(0.02), torch.tensor(128, dtype=torch.int32), 0, 255)
    y = Grid(torch.tensor(1.0), torch.tensor(128, dtype=torch.int32), 0, 255)
    count = weight[0]
    return IntegerLayer(geometry, torch.zeros(weight), torch.full((count,), 0.01), torch.zeros(count), x, y, 0, 255)
