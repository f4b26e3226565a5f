"""What each operator of a traced model is taken for."""

import pytest

import quant
from quant.core.activation import ClampedAffine
from tests.helpers import prepared_gated, simulated_against_float
from tests.nets import Hooked, SharedFunctions


def test_an_activation_that_a_net_shares_is_an_integer_operator_wherever_it_is_called():
    _, prepared = simulated_against_float(SharedFunctions())
    rows = {row[0]: row for row in quant.report(prepared, quant.convert(prepared, "reference"))}
    assert all(rows[name][-2] == "integers in float32" for name in ("act", "act_1", "pool", "pool_1"))


def test_a_layer_with_hooks_stays_as_it_is():
    _, prepared = simulated_against_float(Hooked())
    rows = {row[0]: row for row in quant.report(prepared, quant.convert(prepared, "reference"))}
    assert rows["b"][-2:] == ["float", "it has hooks"]


def test_what_hard_swish_does_not_tell_apart_costs_no_steps():
    """Below -3 it is 0: the grid it reads ends there."""
    prepared, _ = prepared_gated(observer="minmax")
    grid = prepared.get_submodule("stem").output.grid()
    assert float(grid.scale) * (grid.q_min - int(grid.zero_point)) == pytest.approx(-3, abs=float(grid.scale))
    assert prepared.get_submodule("stem").activation == ClampedAffine(-3.0, float("inf"))
