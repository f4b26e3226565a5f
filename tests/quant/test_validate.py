"""What a method cannot do is refused in one line that says what it can."""

import json

import pytest
import torch
from torch import nn

import quant
from tests.conftest import RUNTIMES, spec
from tests.helpers import build
from utils.errors import UserError


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "statasist"}, r"quant.method: unknown 'statasist'; choose from .* \(nearest: statassist\)"),
        ({"engine": "fbgem"}, r"quant.engine: unknown 'fbgem'; choose from .* \(nearest: fbgemm\)"),
        ({"method": "ptq", "weight_bits": 1}, r"quant.weight_bits: ptq cannot use 1 bits; choose 2..8, or 32"),
        (
            {"method": "statassist", "observer": "mse"},
            r"quant.observer: input should be 'moving_average' or 'minmax', not \"mse\"$",
        ),
        ({"method": "ptq", "float_epochs": 3}, r"quant.float_epochs is read by statassist; quant.method is ptq$"),
        ({"method": "statassist", "percentile": 99.0}, r"quant.percentile is read by ptq; quant.method is statassist$"),
        ({"method": "dorefa", "oscillation_dampening": 1.0}, r"is read by lsq, statassist.*; quant.method is dorefa$"),
        ({"method": "float", "step_init": "paper"}, r"quant.step_init is read by lsq.*; quant.method is float$"),
        (
            {"method": "ptq", "rounding_steps": 5},
            r"quant.rounding_steps is read by rounding adaround, brecq; quant.rounding is nearest$",
        ),
        ({"method": "lsq", "residual_bits": 1}, r"quant.residual_bits: lsq cannot use 1 bits; choose 2..8"),
        (
            {"method": "dorefa", "weight_bits": 4, "first_last_bits": 7, "reduce_range": True},
            r"quant.first_last_bits: dorefa cannot use 7 bits: its levels are the odd integers up to",
        ),
        (
            {"method": "ptq", "percentile": 90.0},
            r"quant.percentile is read by observer percentile; quant.observer is minmax$",
        ),
        (
            {"method": "ptq", "rounding": "adaround", "drop": 0.5},
            r"quant.drop is read by rounding brecq; quant.rounding is adaround$",
        ),
    ],
)
def test_refusals(keys, message):
    with pytest.raises(UserError, match=message):
        spec(**keys)


OTHERS = [
    (method, key)
    for method, row in quant.METHODS.items()
    for key in {key for other in quant.METHODS.values() for key in other.options.model_fields}
    if key not in row.options.model_fields
]


@pytest.mark.parametrize(("method", "key"), sorted(OTHERS))
def test_another_methods_key_is_refused_by_the_names_of_its_readers(method, key):
    readers = ", ".join(name for name, row in quant.METHODS.items() if key in row.options.model_fields)
    with pytest.raises(UserError, match=rf"^quant.{key} is read by {readers}; quant.method is {method}$"):
        quant.parse(method=method, **{key: None})


@pytest.mark.parametrize(("method", "row"), quant.METHODS.items())
def test_every_option_is_described(method, row):
    assert all(field.description for field in quant.SECTIONS.kinds[method].model_fields.values())


@pytest.mark.parametrize("method", quant.METHODS)
def test_what_is_resolved_has_nothing_left_to_decide(method):
    found = spec(method=method, weight_bits=4)
    left = [key for key, value in found.flat().items() if value == "auto"]
    assert left == []
    assert type(found.reduce_range) is bool
    assert type(found.options) is quant.METHODS[method].options
    assert getattr(found.options, "observer", "none") is not None


@pytest.mark.parametrize("method", quant.METHODS)
@pytest.mark.parametrize("layers", [{}, {"fc": "float", "layer1.*": {"weight_bits": 4}}, "auto"])
def test_resolving_again_changes_nothing(method, layers):
    target = {} if layers == {} else {"target_mb": 1.0}
    found = spec(method=method, weight_bits=4, layers=layers, **target)
    again = json.loads(json.dumps(found.flat()))
    assert spec(**again) == found
    assert again["layers"] == (layers if layers == "auto" else found.flat()["layers"])


def test_layers_that_are_yet_to_be_chosen_are_none_so_far():
    found = spec(method="ptq", layers="auto", target_mb=1.0)
    assert (found.layers, found.chooses_layers) == ({}, True)


def test_defaults_are_filled_in():
    assert spec(method="ptq").options.observer == "minmax"
    assert spec(method="statassist").options.observer == "moving_average"
    assert spec(method="statassist").reduce_range in (True, False), "auto became a fact about this CPU"
    assert spec(method="ptq", engine="qnnpack").reduce_range is False
    for runtime in RUNTIMES:  # nobody can ask their kernels: they multiply as this CPU does
        assert spec(method="ptq", engine=runtime).reduce_range == spec(method="ptq", engine="x86").reduce_range


def test_a_recipe_fills_in_what_is_null_and_nothing_else():
    keys = ("observer", "cross_layer_equalization", "rounding", "rounding_steps", "drop", "bias_correction")

    def filled(**own) -> list:
        options = spec(method="ptq", **own).options
        return [getattr(options, key) for key in keys]

    assert filled() == ["minmax", False, "nearest", None, None, "none"]
    assert filled(recipe="best") == ["mse", True, "brecq", None, 0.5, "norm"]
    own = {
        "observer": "percentile",
        "rounding": "nearest",
        "bias_correction": "none",
        "cross_layer_equalization": False,
    }
    assert filled(recipe="best", **own) == ["percentile", False, "nearest", None, None, "none"]


def test_reduced_range_keeps_weights_within_63():

    quantizer = quant.METHODS["ptq"].weight(spec(method="ptq", reduce_range=True), 8, (4, 10))
    quantizer(torch.randn(4, 10))
    assert (quantizer.grid().q_min, quantizer.grid().q_max) == (-63, 63)


@pytest.mark.parametrize("keys", [{"method": "dorefa"}, {"method": "pact", "weights": "dorefa"}])
def test_weights_on_a_scale_of_their_own_need_training(keys):
    """Under the float net's batch norms they would be another net."""
    settings = spec(weight_bits=4, **keys)
    quant.check_run(settings, 1, trained_before=True)
    with pytest.raises(UserError, match=r"^run.epochs: 0 trains nothing, and (dorefa|pact)'s weights are on a scale"):
        quant.check_run(settings, 0, trained_before=True)


def test_a_pattern_that_matches_no_layer_is_an_error():
    model = build("resnet20", "cifar")
    quant.check_layers(model, spec(method="lsq", layers={"layer?.*": "float", "fc": "float"}))
    with pytest.raises(UserError, match=r"quant.layers: 'layer1.0.conv' matches no layer.*nearest: layer1.0.conv[12]"):
        quant.check_layers(model, spec(method="lsq", layers={"layer1.0.conv": "float"}))


def test_a_net_that_only_ptq_can_take_is_refused_for_what_trains_it():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 3)

        def forward(self, x):
            x = self.fc(x.flatten(1))
            return x * 2 if self.training else x

    quant.check_layers(Drops(), spec(method="ptq"))
    with pytest.raises(UserError, match=r"its graph in train mode is not that in eval mode"):
        quant.check_layers(Drops(), spec(method="lsq"))


IN_VAIN = [
    ({"method": "lsq", "teacher_share": 0.9}, 3, r"quant.teacher_share: there is no teacher"),
    ({"method": "lsq", "temperature": 2.0}, 3, r"quant.temperature: there is no teacher"),
    ({"method": "lsq", "calibration_images": 9}, 3, r"quant.calibration_images: lsq finds its ranges while it trains"),
    ({"method": "float", "calibration_images": 9}, 3, r"quant.calibration_images: float"),
    ({"method": "ptq", "bn_reestimation_images": 9}, 3, r"quant.bn_reestimation_images: nothing is trained quantized"),
]


@pytest.mark.parametrize(("keys", "epochs", "message"), IN_VAIN)
def test_common_keys_without_effect_are_refused(keys, epochs, message):
    with pytest.raises(UserError, match=message):
        quant.check_run(spec(**keys), epochs, trained_before=True)


FLOAT_BITS = {"weight_bits": 32, "act_bits": 32}
UNREAD = [
    ({"method": "float", "layers": {"fc": "float"}}, "layers: float quantizes nothing"),
    ({"method": "float", "layers": "auto", "target_mb": 1.0}, "layers: float quantizes nothing"),
    ({"method": "float", "target_mb": 1.0}, "target_mb: float quantizes nothing"),
    ({"method": "float", "target_drop": 1.0}, "target_drop: float quantizes nothing"),
    ({"method": "lsq", "weight_bits": 32, "oscillation_dampening": 1.0}, "oscillation_dampening: no weights are"),
    ({"method": "lsq", "transition_rate": True}, "transition_rate: no weights have fewer than 8 bits here$"),
    ({"method": "lsq", "rounding_gradient": "ewgs", **FLOAT_BITS}, "rounding_gradient: nothing is quantized here"),
    ({"method": "statassist", "float_epochs": 3, "rounding_gradient": "ewgs"}, "rounding_gradient: nothing is trained"),
    ({"method": "lsq", "rounding_gradient": "fourier", "weight_bits": 32}, "rounding_gradient: no weights are"),
    ({"method": "pact", "gradient_strength": 0.1}, "gradient_strength: rounding_gradient straight has none$"),
    ({"method": "dorefa", "weight_bits": 32, "transition_rate": 0.1}, "transition_rate: no weights have fewer than"),
    ({"method": "pact", "weight_bits": 32, "first_last_bits": 4, "transition_rate": True}, "transition_rate: no weigh"),
    ({"method": "statassist", "float_epochs": 3, "transition_rate": True}, "transition_rate: nothing is trained"),
    ({"method": "lsq", "act_bits": 32, "offset": "learned"}, "offset: no activations are quantized here"),
    ({"method": "lsq", "step_init": "mse", **FLOAT_BITS}, "step_init: nothing is quantized here"),
    ({"method": "statassist", "weight_bits": 32, "oscillation_dampening": 1.0}, "oscillation_dampening: no weights"),
    ({"method": "statassist", "float_epochs": 3, "oscillation_dampening": 1.0}, "oscillation_dampening: nothing is tr"),
    ({"method": "statassist", "act_bits": 32, "observer": "minmax"}, "observer: no activations are quantized"),
    ({"method": "dorefa", "grad_bits": 6, **FLOAT_BITS}, "grad_bits: nothing is quantized here"),
    ({"method": "dorefa", "weight_bits": 4, "act_bits": 32, "act_clip": 2.0}, "act_clip: no activations are"),
    ({"method": "dorefa", "weight_bits": 4, "act_bits": 32, "observer": "minmax"}, "observer: no activations are"),
    ({"method": "dorefa", "weight_bits": 4, "act_bits": 32, "signed_edges": "affine"}, "signed_edges: no activations"),
    ({"method": "pact", "act_bits": 32, "alpha_init": 1.0}, "alpha_init: no activations are quantized here"),
    ({"method": "pact", "act_bits": 32, "alpha_decay": 0.1}, "alpha_decay: no activations are quantized here"),
    ({"method": "pact", "act_bits": 32, "signed_edges": "affine"}, "signed_edges: no activations are"),
    ({"method": "pact", "act_bits": 32, "observer": "minmax"}, "observer: no activations are"),
    ({"method": "pact", "weight_bits": 32, "weights": "dorefa"}, "weights: no weights are quantized here"),
    ({"method": "ptq", "weight_bits": 32, "rounding": "adaround"}, "rounding: no weights are quantized here"),
    ({"method": "ptq", "weight_bits": 32, "recipe": "best", "rounding": "adaround"}, "rounding: no weights"),
    ({"method": "ptq", "weight_bits": 32, "recipe": "best", "rounding_steps": 9}, "rounding_steps: no weights"),
    ({"method": "ptq", "weight_bits": 32, "recipe": "best", "drop": 0.1}, "drop: no weights are quantized here"),
    ({"method": "ptq", "weight_bits": 32, "bias_correction": "norm"}, "bias_correction: no weights are"),
    ({"method": "ptq", "observer": "mse", **FLOAT_BITS}, "observer: nothing is quantized here"),
    ({"method": "ptq", "cross_layer_equalization": True, **FLOAT_BITS}, "cross_layer_equalization: nothing is"),
]


@pytest.mark.parametrize(("keys", "message"), UNREAD)
def test_options_that_a_run_does_not_read_are_refused(keys, message):
    with pytest.raises(UserError, match=rf"^quant.{message}"):
        quant.check_run(spec(**keys), 3, trained_before=True)


@pytest.mark.parametrize(("keys", "message"), [({"alpha_decay": 0.1, "method": "pact"}, "alpha_decay: nothing is tr")])
def test_options_of_training_are_refused_where_nothing_trains(keys, message):
    with pytest.raises(UserError, match=rf"^quant.{message}"):
        quant.check_run(spec(**keys), 0, trained_before=True)
    with pytest.raises(UserError, match=r"^quant.grad_bits: nothing is trained quantized here$"):
        quant.check_run(spec(method="dorefa", weight_bits=32, grad_bits=6), 0, trained_before=True)


@pytest.mark.parametrize(
    "keys",
    [
        {"method": "lsq", "oscillation_dampening": 1.0, "weight_bits": 32, "layers": {"fc": {"weight_bits": 4}}},
        {"method": "lsq", "oscillation_dampening": 1.0, "weight_bits": 32, "layers": "auto", "target_mb": 1.0},
        {"method": "lsq", "transition_rate": True, "layers": {"fc": {"weight_bits": 4}}},
        {"method": "lsq", "transition_rate": True, "first_last_bits": 4},
        {"method": "dorefa", "weight_bits": 32, "grad_bits": 6},
        {"method": "pact", "act_bits": 32, "alpha_init": 1.0, "layers": {"fc": {"act_bits": 4}, "conv1": "float"}},
        {"method": "statassist", "float_epochs": 2, "oscillation_dampening": 1.0},
    ],
)
def test_options_that_some_layer_reads_are_accepted(keys):
    quant.check_run(spec(**keys), 3, trained_before=True)


@pytest.mark.parametrize("recipe", ["plain", "best"])
@pytest.mark.parametrize("bits", [{"weight_bits": 32}, FLOAT_BITS], ids=str)
def test_what_the_recipe_fills_in_is_not_refused(recipe, bits):
    """Nor when config.json, which has it filled in, is run again."""
    found = spec(method="ptq", recipe=recipe, **bits)
    for one in (found, spec(**found.flat())):
        quant.check_run(one, 0, trained_before=True)
    own = {"rounding": "nearest", "bias_correction": "none", "cross_layer_equalization": False}
    quant.check_run(spec(method="ptq", recipe=recipe, **own, **bits), 0, trained_before=True)


@pytest.mark.parametrize("method", quant.METHODS)
def test_what_a_run_does_not_read_is_named_by_options_of_the_method(method):
    row = quant.METHODS[method]
    for ends_in_float in (True, False):
        assert set(row.unread(spec(method=method, **FLOAT_BITS), ends_in_float)) <= set(row.options.model_fields)


@pytest.mark.parametrize("method", quant.METHODS)
def test_plain_quant_settings_have_the_methods_options_at_their_defaults(method):
    plain = quant.resolve(quant.QuantSettings(method=method, weight_bits=4, layers={"fc": "float"}))
    assert plain == spec(method=method, weight_bits=4, layers={"fc": "float"})


def test_calibration_images_count_where_something_is_calibrated():
    for keys in ({"method": "ptq"}, {"method": "statassist", "float_epochs": 3}):
        quant.check_run(spec(calibration_images=9, **keys), 3, trained_before=True)
    quant.check_run(spec(method="lsq", calibration_images=9, layers="auto", target_mb=1.0), 3, trained_before=True)
    quant.check_run(spec(method="lsq", calibration_images=9), 3, trained_before=True, averages=True)
