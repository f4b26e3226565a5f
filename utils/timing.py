"""Milliseconds of functions that take turns, so that what else the machine does meets all of them alike."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy

BURST = 10
"""Calls of one function in a row: alone, each would start on the caches that the others left."""


@dataclass(frozen=True)
class Spread:
    """Median, 10th and 90th percentile, in milliseconds."""

    median: float
    p10: float
    p90: float


def take_turns(
    functions: dict[str, Callable[[], Any]], warmup: int, repeats: int, progress: Callable[[int], Any]
) -> dict[str, Spread]:
    """Time each function `repeats` times, after `warmup` calls, in bursts of 10 by turns.

    progress(n) is told of every n calls; there are (warmup + repeats) * len(functions) of them.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        for _ in range(warmup):
            function()
        progress(warmup)
    for start in range(0, repeats, BURST):
        burst = min(BURST, repeats - start)
        for name, function in functions.items():
            taken[name] += [_milliseconds(function) for _ in range(burst)]
            progress(burst)
    return {name: Spread(*numpy.percentile(times, (50, 10, 90)).tolist()) for name, times in taken.items()}


def _milliseconds(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - began)
