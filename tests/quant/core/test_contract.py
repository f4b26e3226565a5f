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

    def forward(self, w):
        return self.fixed.value(self.to_int(w))

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


class Tanh(Weights):
    """Trains tanh(w), and gives engines uniform integers."""

    def forward(self, w):
        return torch.tanh(w)


class Scaled(Weights):
    """Its grid is made when it is asked for, of any scale and step."""

    def __init__(self, scale, step: int = 1, q_max: int = 6):
        super().__init__(4, -7, 7)
        self.made = scale, step, q_max

    def grid(self):
        scale, step, q_max = self.made
        scale = torch.tensor(scale)
        return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), -q_max, q_max, step)


class NoInteger(Weights):
    def to_int(self, w):
        return w.view(7, 11, 13, 17)


class NoForward(Weights):
    def forward(self, w):
        raise NotImplementedError


class NoGrid(Weights):
    def grid(self):
        return self.fixed.scale


WRONG_WEIGHTS = {
    "weights need a WeightQuantizer": ObservedActivationQuantizer(4, "minmax"),
    "NotOfEitherType: weights need a WeightQuantizer": NotOfEitherType(4, None, "minmax", 100.0),
    "must have zero_point 0": Weights(4, 0, 15, zero_point=8),
    "must be within -127 .. 127": Weights(8, -128, 127),
    "do not fit in 4 bits": Weights(4, -16, 16, change=powers_of_two),
    "the integers of a weight quantizer must be on its grid: -7, -6, .. 7": Weights(4, -7, 7, change=lambda q: q / 2),
    "on its grid: -7, -5, .. 7": Weights(4, -7, 7, 2, change=lambda q: q.clamp(min=-4)),
    "must be on its grid: -6, -5, .. 6": Weights(4, -6, 6, change=lambda q: q + 1),
    r"Tanh.forward: its outputs in eval mode are not scale \* to_int": Tanh(4, -7, 7),
    "Scaled.grid: ValueError: .*: not step 2 from -6 to 6": Scaled(0.1, 2),
    "Scaled.grid: ValueError: .*: not step 3 from -6 to 6": Scaled([0.1] * 8, 3),
    r"has shape \[3\]; it must be \[\], or \[16\]": Scaled([0.1] * 3),
    "scale of its grid must be positive and finite": Scaled(-0.1),
    "must be positive": Scaled([0.1] * 15 + [0.0]),
    "and finite": Scaled(float("inf")),
    "NoInteger.to_int: RuntimeError: shape": NoInteger(4, -7, 7),
    "NoForward.forward: NotImplementedError": NoForward(4, -7, 7),
    "NoGrid.grid: returns a Tensor, not a Grid": NoGrid(4, -7, 7),
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


class Negative(ObservedActivationQuantizer):
    def grid(self):
        return Grid(torch.tensor(-1.0), torch.tensor(0, dtype=torch.int32), 0, 15)


class WithoutActivation(ObservedActivationQuantizer):
    def forward(self, x):
        return super().forward(x)


class IgnoresActivation(ObservedActivationQuantizer):
    """Of a range on both sides of zero, where a ReLU makes a difference."""

    def grid(self):
        return Grid(torch.tensor(1.0), torch.tensor(8, dtype=torch.int32), 0, 15)

    def forward(self, x, activation=quant.core.activation.IDENTITY):
        return super().forward(x)


WRONG_ACTIVATIONS = {
    "activations need an ActivationQuantizer": ObservedWeightQuantizer(4, None, "minmax"),
    "PowersOfTwo: its outputs are not on its grid": PowersOfTwo(4, "minmax"),
    "one scale for the tensor and step 1": PerChannel(4, "minmax"),
    "0 .. 16 do not fit in 4 bits": TooWide(4, "minmax"),
    "Negative: the scale of its grid must be positive": Negative(4, "minmax"),
    "WithoutActivation.forward: TypeError": WithoutActivation(4, "minmax"),
    "IgnoresActivation: its outputs with a ReLU are not on its grid": IgnoresActivation(4, "minmax"),
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


def test_nor_forward_normed():
    with pytest.raises(TypeError, match=r"Own.forward_normed: .* cannot override forward_normed"):

        class Own(ObservedActivationQuantizer):
            def forward_normed(self, x, norm, activation):
                return x


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


class Counting(Weights):
    """Updates a buffer and an attribute in every forward, in eval mode too."""

    def __init__(self):
        super().__init__(4, -7, 7)
        self.register_buffer("count", torch.tensor(0))
        self.calls = 0

    def forward(self, w):
        self.count += 1
        self.calls += 1
        return super().forward(w) if self.enabled else w


@pytest.mark.parametrize("training", [True, False])
def test_a_check_changes_nothing(training):
    quantizer = ObservedActivationQuantizer(4, "minmax").train(training)
    check_activation_quantizer(quantizer)
    assert quantizer.training == training
    assert not quantizer.is_calibrated()
    counting = Counting().train(training)
    counting.enabled = False
    check_weight_quantizer(counting, torch.randn(4, 9))
    assert counting.training == training
    assert not counting.enabled
    assert int(counting.count) == counting.calls == 0


def test_values_are_compared_once_for_each_kind():
    checked, weight = set(), torch.randn(4, 9)
    check_weight_quantizer(Weights(4, -7, 7), weight, checked)
    check_weight_quantizer(Weights(4, -7, 7, change=lambda q: q / 2), weight, checked)  # not looked at
    for other in (Weights(4, -6, 6, change=lambda q: q / 2), Weights(4, -7, 7, 2, change=lambda q: q + 1)):
        with pytest.raises(UserError, match="must be on its grid"):
            check_weight_quantizer(other, weight, checked)
