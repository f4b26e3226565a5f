"""Time several functions. Their calls are interleaved, so that background load affects all of them equally."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy

BURST = 10
"""Consecutive calls of one function. Single calls would start with the CPU caches that another function filled."""
REST, SETTLE = 0.1, 3
"""Before each burst: seconds of rest, and calls that are not timed. Idle threads of the previous function spin for a
while; on two cores, they would take half of the machine."""


@dataclass(frozen=True)
class Spread:
    """The median and the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float


def time_interleaved(
    functions: dict[str, Callable[[], Any]], warmup: int, repeats: int, progress: Callable[[int], Any]
) -> dict[str, Spread]:
    """Time functions by name, with interleaved calls (`samples`): the spread of each, in milliseconds."""
    return {name: spread(taken) for name, taken in samples(functions, warmup, repeats, progress).items()}


def spread(values: list[float]) -> Spread:
    return Spread(*numpy.percentile(values, (50, 10, 90)).tolist())


def samples(
    functions: dict[str, Callable[[], Any]], warmup: int, repeats: int, progress: Callable[[int], Any]
) -> dict[str, list[float]]:
    """Milliseconds of `repeats` calls of each function, in interleaved bursts of 10 with a rest before each.

    warmup: calls of each function before that. progress(n) is called after every n calls; in total, n adds up to
    (warmup + repeats) * len(functions).
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
