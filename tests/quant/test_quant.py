"""What the package offers: learned parameters, the generator of noise, and what a prepared model is."""

import torch
from torch import nn

import quant
from quant.analysis.integer_share import integer_share
from quant.analysis.layer_table import float_operators, layer_records, layer_summary, layer_table
from quant.core.options import PipelineOptions
from quant.core.quantizer import GradientQuantizer
from quant.graph.views import quantizers
from tests.conftest import KERNELS, photos, spec
from tests.helpers import calibrated
from tests.nets import plain


def test_learned_parameters_come_with_their_weight_decay():
    """PACT decays its clips (in Adam or SGD with their own rate), and its other quantizers learn nothing."""
    prepared = quant.prepare(plain(3), spec(method="pact"))
    clips = [q.alpha for q in quantizers(prepared).values() if hasattr(q, "alpha")]
    [(parameters, decay)] = quant.learned(prepared)
    assert len(clips) == 2
    assert {id(p) for p in parameters} == {id(p) for p in clips}
    assert decay == next(q.weight_decay for q in quantizers(prepared).values() if hasattr(q, "alpha"))


def test_parameters_of_different_decay_are_apart():
    prepared = quant.prepare(plain(3), spec(method="lsq"))
    steps = [p for q in quantizers(prepared).values() for p in q.parameters()]
    [(parameters, decay)] = quant.learned(prepared)
    assert {id(p) for p in parameters} == {id(p) for p in steps}
    assert decay == 0.0
    first = next(q for q in quantizers(prepared).values() if list(q.parameters()))
    first.weight_decay = 0.25
    found = {decay: [id(p) for p in parameters] for parameters, decay in quant.learned(prepared)}
    assert found[0.25] == [id(p) for p in first.parameters()]
    assert len(found[0.0]) == len(steps) - len(found[0.25])


def test_nothing_is_learned_without_learning_quantizers():
    assert quant.learned(quant.prepare(plain(3), spec(method="statassist"))) == []
    assert quant.learned(plain(3)) == []


def test_noise_is_drawn_from_the_generator_that_is_given():
    prepared = quant.prepare(plain(3), spec(method="dorefa", grad_bits=4, weight_bits=4, act_bits=4))
    noisy = [m for m in prepared.modules() if isinstance(m, GradientQuantizer)]
    assert noisy
    generator = torch.Generator()
    quant.draw_from(prepared, generator)
    assert all(m.generator is generator for m in noisy)
    assert not any(hasattr(m, "generator") for m in prepared.modules() if m not in noisy)


def test_noise_of_any_methods_gradient_quantizer_is_drawn_from_it():
    class Own(GradientQuantizer):
        def forward(self, x):
            return x

    net, generator = nn.Sequential(Own(), nn.ReLU()), torch.Generator()
    assert net[0].generator is None
    quant.draw_from(net, generator)
    assert net[0].generator is generator


def test_a_prepared_model_has_quantizers():
    assert quant.is_prepared(quant.prepare(plain(3), spec(method="ptq")))
    assert not quant.is_prepared(plain(3))


def test_the_pipeline_runs_for_methods_that_have_one():
    images = photos(8, 16)
    for method in ("ptq", "lsq"):
        prepared = quant.prepare(plain(3).eval(), spec(method=method))
        quant.calibrate(prepared, [images])
        before = {name: value.clone() for name, value in prepared.state_dict().items()}
        quant.run_ptq_pipeline(prepared, [images], spec(method=method))
        assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())
    prepared = calibrated(plain(3), images, rounding="adaround", rounding_steps=2, weight_bits=3)
    quant.run_ptq_pipeline(prepared, [images], spec(method="ptq", rounding="adaround", rounding_steps=2, weight_bits=3))
    offsets = [q.offset for q in quantizers(prepared).values() if getattr(q, "offset", None) is not None]
    assert any(offset.any() for offset in offsets)


class Own(PipelineOptions):
    """Options of another method than ptq."""


def test_the_pipeline_is_for_any_method_with_its_options():
    images, learned = photos(8, 16), spec(method="ptq", rounding="adaround", rounding_steps=2, weight_bits=3)
    pipeline = {name: getattr(learned.options, name) for name in PipelineOptions.model_fields}
    own = learned.model_copy(update={"options": Own(**pipeline | {"cross_layer_equalization": True})})
    assert quant.equalizes(own)
    prepared = calibrated(plain(3), images, rounding="adaround", rounding_steps=2, weight_bits=3)
    quant.run_ptq_pipeline(prepared, [images], own)
    offsets = [q.offset for q in quantizers(prepared).values() if getattr(q, "offset", None) is not None]
    assert any(offset.any() for offset in offsets)


def test_what_a_spec_asks_for():
    assert quant.equalizes(spec(method="ptq", cross_layer_equalization=True))
    assert not quant.equalizes(spec(method="ptq"))
    assert not quant.equalizes(spec(method="lsq"))
    assert quant.dampening(spec(method="lsq", oscillation_dampening=0.5)) == 0.5
    assert quant.dampening(spec(method="ptq")) == 0.0
    for asked, expected in ((False, 0.0), (True, 0.005), (0.02, 0.02), (1, 1.0)):
        assert quant.transition_rate(spec(method="lsq", weight_bits=2, transition_rate=asked)) == expected
    assert quant.transition_rate(spec(method="ptq")) == 0.0


def test_measuring_tells_of_every_engine():
    images = photos(4, 16)
    batches = [(images, torch.zeros(4).long())]
    prepared = calibrated(plain(3), images)
    integer = quant.convert(prepared, "reference")
    found = quant.measure(prepared, ["reference"], batches, True, 16)
    assert list(found.result["accuracy"]) == ["float", "simulated", "reference"]
    assert found.result["bit_equal"] == {"reference": 100.0}
    assert found.in_float == f"100.0 % of MACs in integers; {float_operators(prepared, integer)}"
    assert found.layers == f"{layer_summary(prepared, integer)}\n\n{layer_table(prepared, integer)}\n"
    assert list(found.predictions.predicted) == ["float", "simulated", "reference"]
    assert found.layer_records == layer_records(prepared, integer, integer_share(prepared, 16))
    assert found.engine == "reference"
    found = quant.measure(prepared, [], batches, False, 16)
    assert list(found.result["accuracy"]) == ["simulated"]
    assert found[1:3] == ("no engine: nothing was converted", "no engine: nothing was converted\n")
    model: nn.Module = plain(3).eval()
    found = quant.measure(model, ["reference"], batches, False, 16)
    assert list(found.result["accuracy"]) == ["float"]
    assert found[1:3] == ("float: nothing is quantized", "float: nothing is quantized\n")
    assert found.layer_records == []


def test_the_layers_are_those_of_the_engine_that_the_model_is_meant_for():
    images = photos(4, 16)
    batches = [(images, torch.zeros(4).long())]
    prepared = calibrated(plain(3), images)
    names = ["reference", *[name for name in KERNELS if name != "reference"]]
    for meant_for in names:
        assert quant.measure(prepared, names, batches, False, 16, 3, meant_for).engine == meant_for
    assert quant.measure(prepared, names, batches, False, 16).engine == names[:2][-1], "real kernels say more"


def test_chosen_layers_are_those_that_the_method_can_quantize(monkeypatch):
    asked = []

    def choose_bits(model, spec, allowed, sample, held_out):
        asked.append((allowed, sample, held_out))
        return {"0": 4, "2": 32, "4": 8}

    monkeypatch.setattr(quant, "choose_bits", choose_bits)
    found = quant.choose_layers(plain(3), spec(method="dorefa", weight_bits=4, reduce_range=False), [1], [2])
    assert found == {"0": {"weight_bits": 4}}
    assert asked == [([1, 2, 3, 4, 5, 6, 7], [1], [2])]
