"""What is read from a packed file computes the same logits; what is no such file is refused."""

import contextlib
import json
import random

import numpy
import pytest
import torch

import quant
from tests.conftest import photos
from tests.packed import EVERY_METHOD, INFO, exported, integer_layers, prepared_net
from utils.errors import UserError


@pytest.mark.parametrize("keys", EVERY_METHOD, ids=str)
def test_the_integers_and_the_logits_of_every_method_come_back(keys, tmp_path):
    prepared = prepared_net("resnet20", {}, keys)
    read, reference = exported(prepared, tmp_path / "m.npz"), quant.convert(prepared, "reference")
    layers = integer_layers(read)
    assert len(layers) == len(reference.layers) == 20
    for layer, (name, converted) in zip(layers, reference.layers.items(), strict=True):
        for part in ("weight", "scale", "bias"):
            assert torch.equal(getattr(layer, part), getattr(converted.layer, part)), (name, part)
        assert layer.weight.unique().numel() > 1
    with torch.inference_mode():
        simulated = prepared(photos(8, 32))
    assert torch.equal(read(photos(8, 32)), simulated)
    assert simulated.std(0).max() > 0, "the logits tell images apart"
    assert read.info == INFO


@pytest.mark.parametrize("name", ["everything", "shufflenet_v2_x0_5"])
def test_nets_with_all_kinds_of_operators_come_back(name, tmp_path):
    prepared = prepared_net(name, {}, {"method": "ptq", "weight_bits": 4, "act_bits": 5})
    read = exported(prepared, tmp_path / "m.npz")
    for count in (1, 8):
        with torch.inference_mode():
            assert torch.equal(read(photos(count, 32)), prepared(photos(count, 32)))


@pytest.mark.parametrize(
    "keys",
    [
        {"act_bits": 32},
        {"act_bits": 32, "bias_correction": "norm"},
        {"weight_bits": 32},
        {"first_last_bits": 32},
        {"layers": {"fc": "float"}},
    ],
    ids=str,
)
def test_what_stays_float_comes_along(keys, tmp_path):
    prepared = prepared_net("resnet20", {}, {"method": "ptq", "weight_bits": 4, "act_bits": 4} | keys)
    read = exported(prepared, tmp_path / "m.npz")
    with torch.inference_mode():
        ours, theirs = read(photos(8, 32)), quant.convert(prepared, "reference")(photos(8, 32))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def changed(file, change) -> None:
    """Write the file again with its model changed."""
    with numpy.load(file, allow_pickle=False) as read:
        arrays = dict(read)
    model = json.loads(str(arrays.pop("model")))
    change(model, arrays)
    numpy.savez(file, model=numpy.array(json.dumps(model)), **arrays)


def operator_of(node: list, kind: str, parts: list) -> None:
    """Make a node of a file call something else: a node is [name, {kind: parts}, args, kwargs]."""
    node[1] = {kind: parts}


def with_scalars(plain, number: float) -> None:
    """Make all scalars in a file, of which grids have their scales, this number."""
    for inside in plain.values() if isinstance(plain, dict) else plain:
        if isinstance(inside, dict) and inside.get("scalar", [None])[0] == "float32":
            inside["scalar"][1] = number
        elif isinstance(inside, dict | list):
            with_scalars(inside, number)


MISCHIEF = {
    "'system' is not a call that a file may ask for": lambda m, a: operator_of(
        m["nodes"][-3], "Call", ["system", {"tuple": []}, {"dict": []}]
    ),
    "'eval'": lambda m, a: operator_of(m["nodes"][3], "eval", ["1"]),
    "'finished' is not an operator": lambda m, a: operator_of(m["nodes"][0], "EngineOperator", ["finished", []]),
    "no attribute '__call__'": lambda m, a: operator_of(m["nodes"][3], "tuple", []),
    "format 99": lambda m, a: m.update(format=99),
    "a node reads": lambda m, a: m["nodes"].pop(),
    "a node reads ": lambda m, a: m["nodes"].pop(1),
    "which no node before it computes": lambda m, a: m["nodes"].reverse(),
    "'input'": lambda m, a: m.pop("input"),
    "'output'": lambda m, a: m.pop("output"),
    "uint8 values end before": lambda m, a: a.update(uint8=a["uint8"][:-1]),
    "float32": lambda m, a: a.pop("float32"),
    "values end before ": lambda m, a: m["nodes"].append(m["nodes"][1]),
    "scale of a grid must be positive": lambda m, a: with_scalars(m, 0.0),
    "scale of a grid must be positive and finite": lambda m, a: with_scalars(m, -1.0),
    "scale of a layer must be finite": lambda m, a: a["float32"].fill(float("inf")),
    "a number is NaN": lambda m, a: a["float32"].fill(float("nan")),
    "bytes for": lambda m, a: m["nodes"][1][1]["IntegerLayer"][0]["integers"].__setitem__(1, 7),
}


@pytest.mark.parametrize("reason", MISCHIEF)
def test_a_file_that_is_not_what_it_should_be_is_refused_in_a_line(reason, tmp_path):
    file = tmp_path / "m.npz"
    exported(prepared_net("plain", {}, EVERY_METHOD[0]), file)
    changed(file, MISCHIEF[reason])
    with pytest.raises(UserError, match=reason) as caught:
        quant.load_packed(str(file))
    assert "\n" not in str(caught.value)


def test_names_in_a_file_are_not_executed(tmp_path):
    """Python code that is generated from a graph has the names of nodes and of keyword arguments in it."""
    file, proof = tmp_path / "m.npz", tmp_path / "proof"
    exported(prepared_net("plain", {}, EVERY_METHOD[0]), file)
    code = f"x=__import__('pathlib').Path({str(proof)!r}).touch(), y"
    changed(file, lambda m, a: m["nodes"][0].__setitem__(3, {"dict": [[code, 1]]}))
    with pytest.raises(UserError):
        quant.load_packed(str(file))(photos(1, 32))
    assert not proof.exists()


@pytest.mark.parametrize("damage", ["a bit", "the end", "a hole"])
def test_a_damaged_file_is_refused_in_a_line(damage, tmp_path):
    file, generator = tmp_path / "m.npz", random.Random(0)
    exported(prepared_net("plain", {}, EVERY_METHOD[0]), file)
    whole = file.read_bytes()
    for _ in range(40):
        at, broken = generator.randrange(len(whole)), bytearray(whole)
        if damage == "a bit":
            broken[at] ^= 1 << generator.randrange(8)
        else:
            broken[at : at + 50] = b"" if damage == "the end" else bytes(50)
        file.write_bytes(broken[:at] if damage == "the end" else broken)
        with contextlib.suppress(UserError):  # a time of day, say, may change unseen
            read = quant.load_packed(str(file))
            assert read(photos(1, 32)).shape == (1, 10)


def test_pickles_and_other_files_are_refused(tmp_path):
    file = tmp_path / "m.npz"
    numpy.savez(file, model=numpy.array([object()]), weights=numpy.zeros(1, numpy.uint8))
    with pytest.raises(UserError, match="not a packed model"):
        quant.load_packed(str(file))
    file.write_text("no archive")
    with pytest.raises(UserError, match="not a packed model"):
        quant.load_packed(str(file))
    with pytest.raises(UserError, match="No such file"):
        quant.load_packed(str(tmp_path / "none.npz"))
