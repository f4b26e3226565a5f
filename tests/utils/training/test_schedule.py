"""Schedules rise, fall and end where their definitions say."""

import math

import pytest

from utils.training import schedule


def test_warm_up_starts_at_zero_and_ends_at_one():
    assert schedule.factor("cosine", 0.0, 10, 2) == 0
    assert schedule.factor("cosine", 1.0, 10, 2) == pytest.approx(0.5)
    assert schedule.factor("cosine", 2.0, 10, 2) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "middle", "end"), [("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("step", 0.1, 0.01), ("constant", 1.0, 1.0)]
)
def test_schedules_by_definition(name, middle, end):
    assert schedule.factor(name, 6, 10, 2, [0.5, 0.75]) == pytest.approx(middle)
    assert schedule.factor(name, 10, 10, 2, [0.5, 0.75]) == pytest.approx(end, abs=1e-12)


def test_cosine_quarter():
    assert schedule.factor("cosine", 2.5, 10, 0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
