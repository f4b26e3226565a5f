"""Each reason is given for an operator that it is true of, and by the first that holds."""

from dataclasses import replace

import pytest
import torch

from quant.analysis.slowness import NEAR, OTHER, REASONS, Facts, reason_of
from quant.core.integer_layer import Geometry, IntegerLayer
from quant.engines.base import FLOAT32_KERNEL
from tests.helpers import grid


def layer(shape: tuple[int, ...], groups: int = 1) -> IntegerLayer:
    geometry = Geometry((1, 1), (0, 0), (1, 1), groups) if len(shape) == 4 else Geometry()
    y = grid(0.1, 0)
    return IntegerLayer(geometry, torch.zeros(shape), torch.ones(shape[0]), torch.zeros(shape[0]), y, y, 0, 255)


DENSE = Facts("a", "onednn", layer((64, 64, 3, 3)), (1, 64, 56, 56), 115_605_504)
CASES = {
    "in float": replace(DENSE, kernel="float", layer=None),
    "reference": replace(DENSE, kernel=FLOAT32_KERNEL, plain=True),
    "exact fallback: no int8 kernel": replace(DENSE, kernel=FLOAT32_KERNEL),
    "exact fallback: no faster way": replace(DENSE, kernel=FLOAT32_KERNEL, layer=None),
    "conversion": replace(DENSE, kernel="", layer=None, converts=True, moves=True),
    "moves values": replace(DENSE, kernel="", layer=None, moves=True),
    "no multiply-accumulates": replace(DENSE, kernel="x86", layer=None, macs=0),
    "layout": replace(DENSE, in_layout=False),
    "depthwise": replace(DENSE, layer=layer((64, 1, 3, 3), 64)),
    "weights": replace(DENSE, layer=layer((1000, 512)), output=(1, 1000), macs=512_000),
    "small": replace(DENSE, layer=layer((8, 32)), output=(1, 8), macs=256),
    "few channels": replace(DENSE, layer=layer((32, 3, 3, 3)), output=(1, 32, 112, 112), macs=10_838_016),
}


@pytest.mark.parametrize("reason", CASES)
def test_a_reason_is_given_where_it_holds(reason):
    assert reason_of(CASES[reason], 10).startswith(reason)


def test_every_reason_of_the_table_has_a_case_and_a_large_layer_has_none():
    assert len({reason_of(facts, 10) for facts in CASES.values()}) == len(REASONS)
    assert reason_of(DENSE, 10) == OTHER
    assert {reason_of(facts, 75) for facts in CASES.values()} == {NEAR}


def test_pixels_are_those_of_all_images():
    assert replace(DENSE, output=(8, 64, 7, 7)).pixels == 8 * 49
    assert replace(DENSE, layer=layer((8, 32)), output=(3, 8)).pixels == 3
