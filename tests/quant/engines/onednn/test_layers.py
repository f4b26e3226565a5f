"""Packed weights. tests/quant/engines/native/test_layers.py runs layers of every shape on every engine."""

import torch

from quant.engines.onednn.layers import MAX_SHAPES, Packed


def test_packed_weights_are_kept_for_the_last_shapes():
    shapes = []

    def pack(shape: torch.Size) -> int:
        shapes.append(shape[0])
        return shape[0]

    operator = Packed(pack, True, lambda x, weights: (len(x), weights))
    for length in range(1, MAX_SHAPES + 2):
        assert operator(torch.zeros(length)) == (length, length)
    assert len(operator.packs) == MAX_SHAPES
    assert shapes == list(range(1, MAX_SHAPES + 2))
    operator(torch.zeros(2))
    assert len(shapes) == MAX_SHAPES + 1, "it is still there"
    assert operator(torch.zeros(1)) == (1, 1), "the oldest was dropped, and is packed again"
    assert shapes[-1] == 1
    assert len(operator.packs) == MAX_SHAPES


def test_weights_that_do_not_depend_on_the_shape_are_packed_once():
    shapes = []
    operator = Packed(lambda shape: shapes.append(shape), False, lambda x, weights: x)
    for length in (1, 2, 1):
        operator(torch.zeros(length))
    assert shapes == [torch.Size([1])]
