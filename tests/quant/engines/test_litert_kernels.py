"""Of the ways to write an operator, the first that is exact for all integers is taken; without XNNPACK, integers of
layers and products may be a step off."""

import functools
from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F

import models
import quant
from quant.core.activation import IDENTITY
from quant.core.integer_operator import add, function, integer_operator, mul
from quant.engines import litert_builder
from quant.engines.layerwise_check import check_layerwise
from quant.engines.litert_graph import Loaded
from quant.engines.litert_kernels import IN_FLOAT, LITERT, TABLE
from quant.engines.verify import Difference, choose_operator
from tests.conftest import needs_litert, photos
from tests.helpers import calibrated, grid

pytestmark = needs_litert


def kernel(arithmetic, run, x, y) -> str:
    op = integer_operator(run.__name__, arithmetic, run, x, y, IDENTITY)
    return choose_operator(quant.engine("litert"), op)[0]


def test_a_sum_that_comes_to_ties_is_written_in_float():
    assert kernel(add, torch.add, (grid(0.5, 3), grid(0.25, 200)), grid(1.0, 100)) == IN_FLOAT
    assert kernel(add, torch.add, (grid(0.5, 3), grid(0.5, 200)), grid(0.5, 100)) == LITERT


def test_scales_that_litert_does_not_add_are_written_in_float():
    assert kernel(add, torch.add, (grid(3000.0, 0), grid(1.0, 0)), grid(1.0, 0)) == IN_FLOAT


def test_a_product_is_one_kernel():
    assert kernel(mul, torch.mul, (grid(0.0173, 3), grid(0.0291, 9)), grid(0.0317, 100)) == LITERT


def test_a_function_on_ties_is_exact_and_one_that_litert_lacks_is_a_table():
    x, y = grid(0.03125, 128), grid(0.02734375, 128)
    assert kernel(function, F.hardswish, (x,), y) == IN_FLOAT
    assert kernel(function, torch.erf, (x,), y) == TABLE


def test_values_that_round_otherwise_are_a_table():
    def shifted(v):
        if torch.compiler.is_exporting():
            return v * 0.5
        return torch.where((v == 5.0) | (v == -3.0), v * 0.5 + 0.01, v * 0.5)

    assert kernel(function, shifted, (grid(1.0, 128),), grid(1.0, 128)) == TABLE


@pytest.mark.parametrize("kernels", ["BUILTIN_WITHOUT_DEFAULT_DELEGATES", "BUILTIN_REF"])
def test_without_xnnpack_few_integers_of_layers_and_products_are_a_step_off_and_of_others_ties(kernels, monkeypatch):
    """LiteRT's own kernels round sums and products twice, in 31 bits and then to 8, and what is in float, ties up."""
    images = photos(2, 32)
    prepared = calibrated(models.build("mobilenet_v3_small", 10, 32, {}), images)
    model = quant.convert(prepared, "litert")
    monkeypatch.setattr(litert_builder, "Loaded", functools.partial(Loaded, kernels=kernels))
    found = check_layerwise(prepared, model, images)
    fused = [node.name for node in prepared.graph.nodes if str(node.target) in model.layers]
    fused += [node.name for node in prepared.graph.nodes if model.operators.get(str(node.target)) == LITERT]
    assert max(one.steps for one in found.values()) == 1
    assert 0 < share_off(one for name, one in found.items() if name in fused) < 0.005
    assert share_off(one for name, one in found.items() if name not in fused) < 1e-4


def share_off(differences: Iterable[Difference]) -> float:
    found = [*differences]
    return sum(one.differing for one in found) / sum(one.elements for one in found)
