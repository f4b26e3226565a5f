"""What must hold in a tree to which docs/extending.md has been applied. tests/test_extending.py runs it there."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from shrinking import Shrinking

import data
import models
import quant
from data import external
from experiment import evaluation, training
from quant.graph.op_table import OPERATORS
from tests import guide
from tests.conftest import KERNELS, agrees_in_integers, photos, spec, trained
from tests.helpers import calibrated, converts_exactly

SCRIPTS = {"train.py": training.main, "evaluate.py": evaluation.main}
BITS = [2, 4, 8]


def test_the_tree_is_the_one_with_the_additions():
    assert Path(quant.__file__).parent == Path(guide.ROOT) / "quant"
    assert "lsq_pow2" in quant.METHODS
    assert "int32" in KERNELS
    assert "stripes" in data.DATASETS
    assert "tiny_net" in models.MODELS
    assert {"softshrink", "maximum"} <= set(OPERATORS)


def test_every_command_runs(capsys):
    """In order: later ones read what earlier ones wrote."""
    for script, *arguments in guide.commands():
        SCRIPTS[script](arguments)
    for name in ("own_data", "stripes", "own_model", "tiny_net", "lsq_pow2", "shrinking"):
        summary = json.loads(Path("runs", name, "summary.json").read_text())
        assert set(summary["agreement"].values()) == {100.0}, name
    measured = json.loads(Path("runs", "lsq_pow2", "evaluation.json").read_text())
    assert measured["agreement"] == {"int32": 100.0, "reference": 100.0}
    assert measured["accuracy"]["int32"]["top1"] > 30, "chance is 10"
    stripes = json.loads(Path("runs", "stripes", "summary.json").read_text())
    own = json.loads(Path("runs", "own_data", "summary.json").read_text())
    assert stripes["accuracy"] == own["accuracy"], "a row changes nothing but the name"


@pytest.mark.parametrize("method", ["lsq_pow2"])
def test_a_method_trains_and_is_the_same_in_integers(method, digits16):
    model = trained(digits16, "tests.nets:Residual", {}, 8, spec(method=method, weight_bits=4, act_bits=4))
    agrees_in_integers(model, digits16, 70)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("method", ["lsq_pow2"])
def test_a_method_is_the_same_in_integers_at_all_bits(method, bits):
    images = photos(8, 16)
    net = models.build("tiny_net", 10, 16, {})
    prepared = quant.prepare(net, spec(method=method, weight_bits=bits, act_bits=bits)).train()
    prepared(images)
    with torch.inference_mode():
        simulated = prepared.eval()(images)
        for engine in ("reference", "fbgemm", "int32"):
            assert torch.equal(quant.convert(prepared, engine)(images), simulated), engine


@pytest.mark.parametrize("step_rounding", ["nearest", "up"])
def test_steps_are_powers_of_two(step_rounding):
    net = models.build("tiny_net", 10, 16, {})
    prepared = quant.prepare(net, spec(method="lsq_pow2", step_rounding=step_rounding)).train()
    prepared(photos(8, 16)).square().sum().backward()
    for quantizer in quant.quantizers(prepared).values():
        scale = quantizer.grid().scale
        assert (torch.frexp(scale).mantissa == 0.5).all()
        assert quantizer.s.grad is not None
        assert (scale >= quantizer.s).all() or step_rounding == "nearest"


@pytest.mark.parametrize("bits", BITS)
def test_operators_run_in_integers_on_every_engine_and_in_a_file(bits, tmp_path):
    images = photos(8, 16)
    keys = {"weight_bits": bits, "act_bits": bits, "residual_bits": bits}
    model = converts_exactly(Shrinking(10), images, **keys)
    assert {"softshrink", "maximum"} <= {name.split(".")[-1].rstrip("_0123456789") for name in model.operators}
    prepared = calibrated(Shrinking(10), images, **keys)
    report = quant.layer_summary(prepared, quant.convert(prepared, "reference"))
    assert report.endswith("every layer runs in integers")
    file = tmp_path / "net.npz"
    quant.export_packed(prepared, file, 16, {})
    assert torch.equal(quant.load_packed(str(file))(images), quant.convert(prepared, "reference")(images))


def test_a_function_of_ones_own_is_what_the_row_loads():
    stripes = importlib.import_module("stripes").stripes
    own = external.load("stripes:stripes", 16, 20, True, {"width": 4})
    assert torch.equal(own.train.pixels, stripes(16, 20, width=4).train.pixels)
