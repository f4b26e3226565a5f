"""How shapes of torch and stored ones correspond."""

import torch

from quant.engines.nhwc_builder import convolved_shape, order, place


def test_maps_are_stored_with_channels_last_and_others_as_they_are():
    assert order((1, 3, 4, 5)) == [1, 4, 5, 3]
    assert order((2, 7)) == [2, 7]


def test_places_and_shapes():
    assert [place(axis, (1, 2, 3, 4)) for axis in range(4)] == [0, 3, 1, 2]
    assert place(1, (1, 2)) == 1
    assert convolved_shape((1, 3, 9, 8), torch.zeros(5, 3, 3, 3), [2, 1, 1, 0, 1, 2, 1]) == [1, 5, 5, 4]
