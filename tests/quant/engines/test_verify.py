"""Kernels and operators that are not exact are never chosen."""

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from quant.core.activation import IDENTITY
from quant.core.integer_layer import Geometry, IntegerLayer
from quant.core.integer_operator import add, average, function, integer_operator, mul
from quant.engines.base import FLOAT32_KERNEL, Engine
from quant.engines.convert import convert
from quant.engines.verify import (
    CALLS,
    Difference,
    choose_kernel,
    choose_operator,
    difference,
    exact_in_int8,
    full_range,
    input_shape,
    layer_difference,
    with_full_range_weights,
)
from tests.conftest import photos
from tests.helpers import converts_exactly, grid, prepared_with


def test_an_average_of_a_map_that_is_larger_than_those_tried():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AvgPool2d(40), nn.Conv2d(4, 3, 1), nn.Flatten())
    converts_exactly(net, photos(4, 40))


class Broken(Engine):
    """An engine whose best kernel adds one to each weight, and whose second refuses every layer."""

    name = "broken"

    def kernels(self, layer):
        return ("wrong", "absent", FLOAT32_KERNEL)

    def layer(self, layer, kernel):
        if kernel == "absent":
            raise RuntimeError("not in this build")
        return layer if kernel == FLOAT32_KERNEL else replace(layer, weight=layer.weight + 1)


def test_a_wrong_or_absent_kernel_is_passed_over():
    prepared, images = prepared_with(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(512, 3)), 8, (3, 10, 10))
    model = convert(prepared, Broken())
    assert {converted.kernel for converted in model.layers.values()} == {FLOAT32_KERNEL}
    assert torch.equal(model(images), prepared(images))


class Scripted(Engine):
    """An engine whose kernels are functions: of a layer, the operator that runs it."""

    def __init__(self, **kernels):
        self.made = kernels

    def kernels(self, layer):
        return tuple(self.made)

    def layer(self, layer, kernel):
        return self.made[kernel](layer)


def refusing(error: type[Exception]):
    def kernel(layer):
        raise error("not for this layer")

    return kernel


def changed_at(positions: slice):
    """A kernel that is one step off at these positions of the output, in memory order."""

    def kernel(layer):
        def run(n):
            out = layer(n).contiguous()
            out.view(-1)[positions] += 1
            return out

        return run

    return kernel


def clamping_weights(most: float):
    """A kernel that is exact only for weights up to +-most, as kernels that saturate are."""
    return lambda layer: replace(layer, weight=layer.weight.clamp(-most, most))


def small_layer(weight: float = 127, float_out: bool = False) -> IntegerLayer:
    y = None if float_out else grid(3.0, 120)
    w = torch.randint(-3, 4, (8, 4, 3, 3)).float()
    w[0, 0, 0, 0] = weight
    geometry = Geometry((1, 1), (1, 1), (1, 1))
    return IntegerLayer(geometry, w, torch.full((8,), 0.37), torch.zeros(8), grid(0.02, 7), y, 0, 255)


def exact(layer):
    return layer


@pytest.mark.parametrize(
    ("steps", "differing", "elements", "within"),
    [
        (0, 0, 10, True),
        (1, 1, 10, True),
        (1, 2, 10, False),
        (1, 3, 30_000, True),
        (1, 4, 30_000, False),
        (2, 1, 30_000, False),
    ],
)
def test_one_step_on_one_element_in_ten_thousand_is_exact(steps, differing, elements, within):
    assert Difference(steps, differing, elements).counts_as_exact() is within


def test_a_difference_is_the_largest_distance_and_how_many_differ():
    found = difference(torch.tensor([1.0, 5.0, -2.0, 0.0]), torch.tensor([1.0, 2.0, -1.0, 0.0]))
    assert (found.steps, found.differing, found.elements, found.fraction) == (3, 2, 4, 0.5)


@pytest.mark.parametrize("float_out", [False, True])
def test_the_first_exact_kernel_is_chosen(float_out):
    engine = Scripted(broken=clamping_weights(1), good=exact, other=exact)
    kernel, operator, found = choose_kernel(engine, small_layer(float_out=float_out))
    assert kernel == "good"
    assert found.steps == 0
    assert isinstance(operator, IntegerLayer)


def slow(layer):
    def run(n):
        time.sleep(0.01)
        return layer(n)

    return run


def test_the_fastest_exact_kernel_is_chosen():
    engine = Scripted(slow=slow, wrong=clamping_weights(1), fast=exact, **{FLOAT32_KERNEL: exact})
    assert choose_kernel(engine, small_layer())[0] == "fast"


def test_the_arithmetic_in_float_is_taken_last_however_fast_it_is():
    assert choose_kernel(Scripted(slow=slow, **{FLOAT32_KERNEL: exact}), small_layer())[0] == "slow"


def test_kernels_are_timed_once_for_layers_of_a_shape():
    calls = []

    def counted(layer):
        return lambda n: (calls.append(n.shape[0]), layer(n))[1]

    engine = Scripted(slow=slow, counted=counted)
    layer = small_layer()
    choose_kernel(engine, layer)
    timed = len(calls)
    choose_kernel(engine, replace(layer, weight=layer.weight.flip(0)))
    assert timed > CALLS
    assert len(calls) == timed + 1, "the check of the layer itself"


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, AttributeError])
def test_a_kernel_that_refuses_a_layer_is_skipped(error):
    assert choose_kernel(Scripted(absent=refusing(error), good=exact), small_layer())[0] == "good"


def test_other_errors_and_those_of_the_last_kernel_are_raised():
    with pytest.raises(ValueError, match="not for this layer"):
        choose_kernel(Scripted(broken=refusing(ValueError), good=exact), small_layer())
    with pytest.raises(RuntimeError, match="not for this layer"):
        choose_kernel(Scripted(**{FLOAT32_KERNEL: refusing(RuntimeError)}), small_layer())


def test_no_exact_kernel_is_an_error_that_names_the_engine_and_the_layer():
    with pytest.raises(RuntimeError, match=r"^reference: no kernel is exact for the layer .*\(8, 4, 3, 3\)$"):
        choose_kernel(Scripted(off=changed_at(slice(None)), few=changed_at(slice(40))), small_layer())


def test_a_kernel_must_be_exact_at_full_range_though_this_layers_weights_would_pass():
    """The weights of a layer are drawn again up to its largest one: only then most kernels that saturate do so."""
    layer, engine = small_layer(weight=100), Scripted(saturating=clamping_weights(99), good=exact)
    layer.weight[0] = 0
    layer.weight[0, 0, 0, 0] = 100  # on one of 288 weights the kernel differs by 1 %
    n = torch.zeros(1, 4, 6, 6)
    assert layer_difference(engine, layer, clamping_weights(99)(layer), n).counts_as_exact(), (
        "blind to it on these inputs"
    )
    assert choose_kernel(engine, layer)[0] == "good"


def test_a_kernel_must_be_exact_for_the_layer_itself_too():
    layer = small_layer()

    def other_than_this(given):
        return replace(given, weight=given.weight + 1) if torch.equal(given.weight, layer.weight) else given

    assert choose_kernel(Scripted(sly=other_than_this, good=exact), layer)[0] == "good"


def test_a_float_output_is_compared_in_units_of_its_sums():
    layer, engine = small_layer(float_out=True), Engine()
    n = full_range(layer.x, input_shape(layer))
    unit = float(layer.accumulator_scale()[0])
    for error, steps in ((0.4, 0), (3.0, 3)):
        found = layer_difference(engine, layer, lambda m, error=error: layer(m) + error * unit, n)
        assert found.steps == steps


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("float_out", [False, True])
def test_layers_are_tried_with_weights_and_inputs_of_the_whole_range_and_sums_that_show(linear, float_out):
    layer = small_layer(float_out=float_out)
    if linear:
        layer = replace(
            layer, geometry=Geometry(), weight=torch.ones(16, 40), scale=torch.ones(16), bias=torch.zeros(16)
        )
    tried = with_full_range_weights(layer, 63)
    assert (tried.weight.min(), tried.weight.max()) == (-63, 63)
    n = full_range(layer.x, input_shape(layer))
    assert (n.min(), n.max()) == (-7, 248)
    assert n.shape[1] == (40 if linear else 4)
    out = tried(n)
    assert out.numel() >= 1_000
    if not float_out:
        inside = (out > out.min()) & (out < out.max())
        assert inside.double().mean() > 0.5, "clamped outputs would hide errors"
        assert len(out.unique()) > 100


def test_whether_int8_is_exact_is_asked_of_the_weights_range():
    for most, exact_at in ((200, (63, 127)), (64, (63,)), (1, ())):
        engine = Scripted(int8=clamping_weights(most), **{FLOAT32_KERNEL: exact})
        assert [largest for largest in (63, 127) if exact_in_int8(engine, largest)] == list(exact_at), most
    assert exact_in_int8(Engine(), 127), "an engine with one kernel alone is asked for that"


class Ways(Engine):
    """As many ways to run an operator as errors: how far each is off, where its first input lies above a limit."""

    def __init__(self, *errors: float, above: float = -1e9):
        self.errors, self.above = errors, above

    def operators(self, op):
        return [(f"way {i}", lambda *n, error=error: self.off(op, n, error)) for i, error in enumerate(self.errors)]

    def off(self, op, n, error):
        out = op(*n)
        return out + error * (n[0] > self.above) if out.shape == n[0].shape else out + error


@pytest.mark.parametrize(("arithmetic", "run"), [(add, torch.add), (mul, torch.mul), (function, torch.tanh)])
def test_the_first_way_that_is_right_for_every_integer_is_chosen(arithmetic, run):
    x, y = grid(0.03, 100), grid(0.05, 128)
    op = integer_operator(run.__name__, arithmetic, run, (x,) if arithmetic is function else (x, x), y, IDENTITY)
    assert choose_operator(Ways(1, 0, 0), op)[0] == "way 1"
    assert choose_operator(Ways(1, 0, above=154), op)[0] == "way 1", "wrong for the last integer of the grid alone"
    with pytest.raises(RuntimeError, match=r"^reference: no kernel is exact for IntegerOperator"):
        choose_operator(Ways(1, 2), op)


def test_an_average_is_tried_on_a_map_and_a_single_way_on_nothing():
    x = grid(0.03, 100)
    op = integer_operator("mean", average, lambda v: v.mean((2, 3), keepdim=True), (x,), x, IDENTITY)
    assert choose_operator(Ways(0, 1), op)[0] == "way 0"
    assert choose_operator(Ways(1, 0), op)[0] == "way 1"
    assert choose_operator(Ways(7), op)[0] == "way 0"
