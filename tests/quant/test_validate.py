"""What a method cannot do is refused in one line that says what it can."""

import pytest
import torch

import quant
from tests.conftest import RUNTIMES, spec
from tests.helpers import build
from utils.config import QuantSettings
from utils.errors import UserError


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "statasist"}, r"quant.method: unknown 'statasist'; choose from .* \(nearest: statassist\)"),
        ({"engine": "fbgem"}, r"quant.engine: unknown 'fbgem'; choose from .* \(nearest: fbgemm\)"),
        ({"method": "ptq", "weight_bits": 1}, r"quant.weight_bits: ptq cannot use 1 bits; choose 2..8, or 32"),
        (
            {"method": "statassist", "observer": "mse"},
            r"quant.observer: statassist cannot use 'mse'; choose from moving_",
        ),
        (
            {"method": "ptq", "float_epochs": 3},
            r"quant.float_epochs: ptq has no such option; it has correct, drop, eq",
        ),
        ({"method": "statassist", "percentile": 99.0}, r"quant.percentile: statassist has no such option"),
        ({"method": "lsq", "rounding": "brecq"}, r"quant.rounding: lsq has no such option; it has damping, step_init$"),
        (
            {"method": "statassist", "recipe": "best"},
            r"quant.recipe: statassist has no such option; it has damping, float_",
        ),
        (
            {"method": "ptq", "rounding_steps": 5},
            r"quant.rounding_steps: rounding nearest .*; it is adaround or brecq's$",
        ),
        ({"method": "lsq", "residual_bits": 1}, r"quant.residual_bits: lsq cannot use 1 bits; choose 2..8"),
        (
            {"method": "dorefa", "weight_bits": 4, "first_last_bits": 7, "reduce_range": True},
            r"quant.first_last_bits: dorefa cannot use 7 bits: its levels are the odd integers up to",
        ),
        (
            {"method": "ptq", "percentile": 90.0},
            r"quant.percentile: observer minmax has none; quant.observer=percentile$",
        ),
        ({"method": "ptq", "rounding": "adaround", "drop": 0.5}, r"quant.drop: rounding adaround .*; it is brecq's$"),
    ],
)
def test_refusals(keys, message):
    with pytest.raises(UserError, match=message):
        quant.resolve(QuantSettings(**keys))


def test_defaults_are_filled_in():
    assert spec(method="ptq").observer == "minmax"
    assert spec(method="statassist").observer == "moving_average"
    assert spec(method="statassist").reduce_range in (True, False), "auto became a fact about this CPU"
    assert spec(method="ptq", engine="qnnpack").reduce_range is False
    for runtime in RUNTIMES:  # nobody can ask their kernels: they multiply as this CPU does
        assert spec(method="ptq", engine=runtime).reduce_range == spec(method="ptq", engine="x86").reduce_range


def test_a_recipe_fills_in_what_is_null_and_nothing_else():
    keys = ("observer", "equalize", "rounding", "rounding_steps", "drop", "correct")
    assert [getattr(spec(method="ptq"), key) for key in keys] == ["minmax", False, "nearest", None, None, "none"]
    best = spec(method="ptq", recipe="best")
    assert (best.observer, best.rounding, best.drop) == ("mse", "brecq", 0.5)
    own = spec(method="ptq", recipe="best", observer="percentile", rounding="nearest", correct="none", equalize=False)
    assert [getattr(own, key) for key in keys] == ["percentile", False, "nearest", None, None, "none"]
    assert spec(**best.model_dump()) == best, "what is resolved stays as it is"
    assert spec(method="lsq").rounding is None


def test_reduced_range_keeps_weights_within_63():

    quantizer = quant.METHODS["ptq"].weight(spec(method="ptq", reduce_range=True), 8, (4, 10))
    quantizer(torch.randn(4, 10))
    assert (quantizer.grid().q_min, quantizer.grid().q_max) == (-63, 63)


def test_a_method_without_observers_says_so():
    with pytest.raises(UserError, match=r"quant.observer: lsq has no such option; it has damping, step_init$"):
        spec(method="lsq", observer="mse")
    assert spec(method="lsq").observer is None


@pytest.mark.parametrize("keys", [{"method": "dorefa"}, {"method": "pact", "weights": "dorefa"}])
def test_weights_on_a_scale_of_their_own_need_training(keys):
    """Under the float net's batch norms they would be another net."""
    settings = spec(weight_bits=4, **keys)
    quant.check_run(settings, 1, trained_before=True)
    with pytest.raises(UserError, match=r"^run.epochs: 0 trains nothing, and (dorefa|pact)'s weights are on a scale"):
        quant.check_run(settings, 0, trained_before=True)


def test_a_pattern_that_matches_no_layer_is_an_error():
    model = build("resnet20", "cifar")
    quant.check_layers(model, ["layer?.*", "fc"])
    with pytest.raises(UserError, match=r"quant.layers: 'layer1.0.conv' matches no layer.*nearest: layer1.0.conv[12]"):
        quant.check_layers(model, ["layer1.0.conv"])
