"""Whatever is in a setting, a checkpoint or a tensor: no traceback, no code run, nothing overwritten."""

import contextlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data
import models
import quant
from experiment import evaluation, latency, training
from experiment.settings import EvaluateSettings, LatencySettings, TrainSettings, resolved
from tests.conftest import spec
from utils import errors
from utils.runs import checkpoint, tensor_file

SCRIPTS = {"train": training.main, "evaluate": evaluation.main, "latency": latency.main}
KINDS = {"train": TrainSettings, "evaluate": EvaluateSettings, "latency": LatencySettings}
FILES = {name: json.loads(Path(f"setting/{name}.json").read_text()) for name in SCRIPTS}
for values in FILES.values():
    values.pop("$schema")
FUZZ = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["../../x", "/", "a" * 4000, "lsq", "auto", 0, -1, 2**31, 1e300, "\x00", "résumé", "${HOME}"]),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=6), inside, max_size=3),
    max_leaves=5,
)


def outcome(script: str, *arguments: str) -> int:
    """The exit code of a script; whatever it prints on stderr must be a line."""
    said, code = io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr("sys.argv", [f"{script}.py", *arguments])
        try:
            errors.run(SCRIPTS[script])
        except SystemExit as stopped:
            code = stopped.code
    assert code in (0, 2)
    assert len(said.getvalue().splitlines()) == (1 if code else 0), said.getvalue()
    return code


def put_somewhere(value: dict | list, choose, new) -> None:
    """Let `new` take the place of some value in nested dicts and lists, at any depth."""
    key = choose.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if isinstance(value[key], dict | list) and value[key] and choose.random() < 0.8:
        put_somewhere(value[key], choose, new)
    else:
        value[key] = new


@settings(max_examples=350, **FUZZ)
@given(script=st.sampled_from(list(SCRIPTS)), choose=st.randoms(use_true_random=False), new=VALUES)
def test_a_setting_with_any_value_anywhere(script, choose, new, tmp_path_factory):
    every_key = KINDS[script].model_validate(FILES[script]).model_dump()
    put_somewhere(every_key, choose, new)
    file = tmp_path_factory.getbasetemp() / "fuzz.json"
    file.write_text(json.dumps(every_key))
    outcome(script, "-c", str(file), "--print-config")


@settings(max_examples=150, **FUZZ)
@given(script=st.sampled_from(list(SCRIPTS)), at=st.floats(0, 1), cut=st.integers(0, 40), new=st.text(max_size=8))
def test_a_setting_with_any_text_anywhere(script, at, cut, new, tmp_path_factory):
    text = json.dumps(FILES[script])
    start = int(at * len(text))
    file = tmp_path_factory.getbasetemp() / "fuzz.json"
    file.write_text(text[:start] + new + text[start + cut :], encoding="utf-8", errors="surrogatepass")
    outcome(script, "-c", str(file), "--print-config")


INPUTS = {"data": {"classes": {"0": "0"}, "test": {"images": {"0 0": 4}, "digest": "0"}}, "model.weights": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run's folder with the smallest of checkpoints, and files that nobody may touch."""
    folder = tmp_path_factory.mktemp("fuzz")
    asked = {"model": {"name": "tests.nets:plain"}, "data": {"image_size": 8, "limit": 4}, "quant": {"act_bits": 4}}
    own = resolved(TrainSettings.model_validate(asked))
    model = quant.prepare(models.build(own.model.name, 10, 8, {}), quant.resolve(own.quant))
    model.train()(torch.randn(4, 3, 8, 8))
    seen = data.Dataset(None, None, [str(i) for i in range(10)], (0.5,) * 3, (0.25,) * 3, False)
    tensor_file.save(folder / "last.pt", checkpoint.pack(model, own.model_dump(), seen, True, 1, inputs=INPUTS))
    (folder / "summary.json").write_text("mine")
    return folder


def measured(content: bytes, folder: Path) -> int:
    """The exit code of evaluate.py on a checkpoint with this content, in a folder whose other files stay."""
    (folder / "last.pt").write_bytes(content)
    code = outcome("evaluate", f"checkpoint={folder / 'last.pt'}", 'engines=["reference"]', "trust=true")
    assert (folder / "summary.json").read_text() == "mine"
    assert (folder / "last.pt").read_bytes() == content
    assert not Path("code_was_run").exists()
    assert code == 2 or (folder / "evaluation.json").exists()
    return code


def test_the_checkpoint_itself_is_fine(folder):
    assert measured(good(folder), folder) == 0


@settings(max_examples=110, **FUZZ)
@given(kind=st.sampled_from(["truncated", "flipped", "spliced"]), at=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_checkpoint_with_any_damage(kind, at, bit, folder):
    content = bytearray(good(folder))
    start = int(at * (len(content) - 1))
    if kind == "truncated":
        content = content[:start]
    elif kind == "flipped":
        content[start] ^= 1 << bit
    else:
        content[start : start + 64] = content[-64:]
    measured(bytes(content), folder)


GOOD: dict[Path, bytes] = {}


def good(folder: Path) -> bytes:
    return GOOD.setdefault(folder, (folder / "last.pt").read_bytes())


@settings(max_examples=80, **FUZZ)
@given(choose=st.randoms(use_true_random=False), new=VALUES | st.just(torch.zeros(3)) | st.just(torch.tensor(0j)))
def test_a_checkpoint_with_any_value_anywhere(choose, new, folder):
    """With a checksum that fits: somebody made it so."""
    state = torch.load(io.BytesIO(good(folder)), weights_only=True)
    state.pop(tensor_file.CHECKSUM)
    put_somewhere(state, choose, new)
    buffer = io.BytesIO()
    torch.save(state | {tensor_file.CHECKSUM: tensor_file.checksum(state)}, buffer)
    measured(buffer.getvalue(), folder)


class Runs:
    def __reduce__(self):
        return eval, ("open('code_was_run', 'w').close()",)


class Imports:
    def __reduce__(self):
        import os

        return os.system, ("touch code_was_run",)


@pytest.mark.parametrize("inside", ["alone", "as a value", "as a tensor's name", "in an archive"])
@pytest.mark.parametrize("evil", [Runs, Imports])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_would_run_code_does_not(inside, evil, protocol, folder):
    whole = torch.load(io.BytesIO(good(folder)), weights_only=True)
    if inside == "alone":
        content = pickle.dumps(evil(), protocol)
    elif inside == "in an archive":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"format": 3, "model": evil()}, protocol))
            archive.writestr("archive/version", "3")
            archive.writestr("archive/byteorder", "little")
        content = buffer.getvalue()
    else:
        if inside == "as a value":
            whole["settings"]["note"] = evil()
        else:
            whole["model"][evil()] = torch.zeros(1)
        buffer = io.BytesIO()
        torch.save(whole, buffer, pickle_protocol=protocol)
        content = buffer.getvalue()
    assert measured(content, folder) == 2


METHODS = [name for name in quant.METHODS if name != "float"]
NUMBERS = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, -0.0, 1e-38, -1e-45, 1e-30, 0.5, -0.5])


@settings(max_examples=200, **FUZZ)
@given(
    method=st.sampled_from(METHODS),
    bits=st.integers(2, 8),
    signed=st.booleans(),
    first=st.lists(NUMBERS, min_size=4, max_size=24),
    then=st.lists(NUMBERS, min_size=1, max_size=24),
)
def test_a_quantizer_puts_any_numbers_on_its_grid(method, bits, signed, first, then):
    """Started on some and given others: finite, on the grid, exactly scale (q - zero_point), and so again."""
    given = [torch.tensor(values) if signed else torch.tensor(values).abs() for values in (first, then)]
    quantizer = quant.METHODS[method].activation(spec(method=method, weight_bits=4), bits, signed)
    quantizer.train()(given[0])
    quantizer.finish_observing()
    quantizer.eval()
    grid = quantizer.grid()
    for x in given:
        y, q = quantizer(x), quantizer.to_int(x)
        assert torch.isfinite(y).all()
        assert torch.equal(q, q.round())
        assert grid.q_min <= q.min() <= q.max() <= grid.q_max
        assert torch.equal(y, grid.scale * (q - grid.zero_point))
        assert torch.equal(quantizer(y), y)
