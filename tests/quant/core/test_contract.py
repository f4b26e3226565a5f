"""Quantizers that engines could not run are refused: when their class is made, or by prepare."""

from dataclasses import replace

import pytest
import torch

import quant
from quant.core.contract import check_activation_quantizer, check_weight_quantizer
from quant.core.grid import Grid
from quant.core.observed import ObservedActivationQuantizer, ObservedRange, ObservedWeightQuantizer
from quant.core.quantizer import ActivationQuantizer, Quantizer, WeightQuantizer
from quant.graph.prepare import prepare
from quant.methods import lsq
from tests.conftest import spec
from tests.nets import plain
from utils.errors import UserError


class Weights(WeightQuantizer):
    """To be given a grid, and integers by a function of the nearest."""

    def __init__(self, bits: int, q_min: int, q_max: int, step: int = 1, zero_point: int = 0, change=lambda q: q):
        super().__init__(bits)
        scale = torch.tensor(0.1)
        self.fixed = Grid(scale, torch.tensor(zero_point, dtype=torch.int32), q_min, q_max, step)
        self.change = change

    def grid(self):
        return self.fixed

    def to_int(self, w):
        return self.change(self.fixed.to_int(w))


def powers_of_two(q):
    return q.sign() * 2.0 ** q.abs().clamp(min=1).log2().round()


class PowersOfTwo(ObservedActivationQuantizer):
    """A non-uniform activation quantizer (as in APoT), with a uniform grid."""

    def forward(self, x, activation=quant.core.activation.IDENTITY):
        grid = self.grid()
        return grid.value(powers_of_two(grid.centred(activation(x))))


class NotOfEitherType(ObservedRange):
    def grid_of(self, low, high):
        return Grid(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), -7, 7)


WRONG_WEIGHTS = {
    "weights need a WeightQuantizer": ObservedActivationQuantizer(4, "minmax"),
    "NotOfEitherType: weights need a WeightQuantizer": NotOfEitherType(4, None, "minmax", 100.0),
    "must have zero_point 0": Weights(4, 0, 15, zero_point=8),
    "must be within -127 .. 127": Weights(8, -128, 127),
    "do not fit in 4 bits": Weights(4, -16, 16, change=powers_of_two),
    "the integers of a weight quantizer must be on its grid: -7, -6, .. 7": Weights(4, -7, 7, change=lambda q: q / 2),
    "on its grid: -7, -5, .. 7": Weights(4, -7, 7, 2, change=lambda q: q.clamp(min=-4)),
    "must be on its grid: -6, -5, .. 6": Weights(4, -6, 6, change=lambda q: q + 1),
}


@pytest.mark.parametrize("message", WRONG_WEIGHTS)
def test_prepare_refuses_a_weight_quantizer(message):
    method = replace(lsq.METHOD, weight=lambda *_: WRONG_WEIGHTS[message])
    with pytest.raises(UserError, match=message) as refused:
        prepare(plain(10), spec(method="lsq", weight_bits=4), method)
    assert "\n" not in str(refused.value)


class PerChannel(ObservedActivationQuantizer):
    def grid(self):
        return Grid(torch.ones(3), torch.zeros(3, dtype=torch.int32), 0, 15)


class TooWide(ObservedActivationQuantizer):
    def grid(self):
        return Grid(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), 0, 16)


WRONG_ACTIVATIONS = {
    "activations need an ActivationQuantizer": ObservedWeightQuantizer(4, None, "minmax"),
    "PowersOfTwo: its outputs are not on its grid": PowersOfTwo(4, "minmax"),
    "one scale for the tensor and step 1": PerChannel(4, "minmax"),
    "0 .. 16 do not fit in 4 bits": TooWide(4, "minmax"),
}


@pytest.mark.parametrize("place", ["activation", "residual"])
@pytest.mark.parametrize("message", WRONG_ACTIVATIONS)
def test_prepare_refuses_an_activation_quantizer(message, place):
    method = replace(lsq.METHOD, **{place: lambda *_: WRONG_ACTIVATIONS[message]})
    with pytest.raises(UserError, match=message) as refused:
        prepare(plain(10), spec(method="lsq", weight_bits=4, act_bits=4), method)
    assert "\n" not in str(refused.value)


def test_an_activation_quantizer_cannot_override_to_int():
    with pytest.raises(TypeError, match=r"Own.to_int: .* engines read only the grid of an activation"):

        class Own(ObservedActivationQuantizer):
            def to_int(self, x):
                return x.sign()


def test_nor_inherit_another_one_from_a_mixin():
    class Mixin(Quantizer):
        def to_int(self, x):
            return x.sign()

    with pytest.raises(TypeError, match=r"Mixed.to_int"):

        class Mixed(Mixin, ActivationQuantizer):
            pass


def test_weights_may_choose_any_integers_on_their_grid():
    check_weight_quantizer(Weights(8, -64, 64, change=powers_of_two), torch.randn(4, 9))
    check_weight_quantizer(Weights(4, -15, 15, 2), torch.randn(4, 9))
    check_weight_quantizer(Weights(1, -1, 1, 2), torch.randn(4, 9))


@pytest.mark.parametrize("training", [True, False])
def test_a_check_changes_nothing(training):
    quantizer = ObservedActivationQuantizer(4, "minmax").train(training)
    check_activation_quantizer(quantizer)
    assert quantizer.training == training
    assert not quantizer.is_calibrated()
