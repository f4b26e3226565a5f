"""Functions take turns, are warmed up first, and every call counts once."""

import time

from utils.timing import BURST, SETTLE, time_interleaved


def test_functions_take_turns_in_bursts_after_their_warm_up():
    calls, told = [], []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    time_interleaved(functions, 2, BURST + 3, told.append)
    first, second = SETTLE + BURST, SETTLE + 3
    assert "".join(calls) == "aabb" + "a" * first + "b" * first + "a" * second + "b" * second
    assert sum(told) == 2 * (2 + BURST + 3), "of the calls that count, and the warm-up"


def test_median_and_percentiles_are_of_the_timed_calls_in_milliseconds():
    burst = [0.001 * (1 + i % 5) for i in range(BURST)]
    waits = iter([0.05, *([0.03] * SETTLE + burst) * 2])  # slow calls before each burst, which do not count
    spread = time_interleaved({"wait": lambda: time.sleep(next(waits))}, 1, 20, lambda n: None)["wait"]
    assert 1 <= spread.p10 <= spread.median <= spread.p90 < 20
    assert 2.9 <= spread.median < 4.5
