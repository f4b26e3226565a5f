"""Milliseconds of functions that take turns, so that what else the machine does meets all of them alike."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy

BURST = 10
"""Calls of one function in a row: alone, each would start on the caches that the others left."""
REST, SETTLE = 0.1, 3
"""Before a burst: seconds, so that threads of whoever ran before have stopped waiting for more work (they spin, and
with two cores that is half of the machine), and calls that are not counted."""


@dataclass(frozen=True)
class Spread:
    """Median, 10th and 90th percentile."""

    median: float
    p10: float
    p90: float


def take_turns(
    functions: dict[str, Callable[[], Any]], warmup: int, repeats: int, progress: Callable[[int], Any]
) -> dict[str, Spread]:
    """The spread of what `samples` measures."""
    return {name: spread(taken) for name, taken in samples(functions, warmup, repeats, progress).items()}


def spread(values: list[float]) -> Spread:
    return Spread(*numpy.percentile(values, (50, 10, 90)).tolist())


def samples(
    functions: dict[str, Callable[[], Any]], warmup: int, repeats: int, progress: Callable[[int], Any]
) -> dict[str, list[float]]:
    """Time each function `repeats` times, after `warmup` calls, in bursts of 10 by turns, with a rest between them.

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
            time.sleep(REST)
            for _ in range(SETTLE):
                function()
            taken[name] += [_milliseconds(function) for _ in range(burst)]
            progress(burst)
    return taken


def _milliseconds(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - began)
