"""Whatever somebody made a checkpoint or a packed file of: it is measured, or refused in one line.

`python -m benchmarks.faults` tries more of them: FAULTS is how many, each time others.
"""

import contextlib
import io
import json
import os
import random
import resource
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data
import models
import quant
from experiment import evaluation
from experiment.settings import TrainSettings, resolved
from utils import errors
from utils.errors import UserError
from utils.runs import checkpoint, tensor_file

MODEL = "tests.nets:plain"
FAULTS = int(os.environ.get("FAULTS", 0))
MANY = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck), "derandomize": not FAULTS}
NUMBERS = [0, -1, 1, 2**63, -(2**70), 1e300, -1e-300, float("nan"), float("inf"), True]
OTHERS = [None, "", "os:system", "a\nb\x1b[2J", "x" * 5000, [], {}, [[]], {"": {}}, (1, 2)]
"""Values that take the place of others."""


def tensors(like: torch.Tensor, choose: random.Random) -> torch.Tensor:
    """Something else for a tensor: other numbers, another shape, another kind."""
    number = choose.choice([0.0, -1.0, 1e38, float("nan"), float("inf"), -float("inf")])
    several = like.clone() if like.dtype != torch.bool else like.float()
    if several.is_floating_point():
        several.view(-1)[: 1 + choose.randrange(max(several.numel(), 1))] = number
    kinds = (torch.float64, torch.float16, torch.complex64, torch.int64, torch.bool)
    return choose.choice(
        [several, like.float().fill_(number), like[None], torch.zeros(0), torch.zeros(like.shape, device="meta")]
        + [like.to(kind) for kind in kinds]
        + [like.float().to_sparse()] * (like.ndim > 0)
    )


def changed(value, choose: random.Random):
    """Something else for a value."""
    changeable = isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_meta
    if changeable and choose.random() < 0.8:
        return tensors(value, choose)
    deep: list = []
    for _ in range(choose.choice([90, 500])):
        deep = [deep]
    return choose.choice([*NUMBERS, *OTHERS, deep, torch.zeros(3)])


def mutate(state: dict | list, choose: random.Random) -> None:
    """Change, remove, rename or add a value, at any depth."""
    key = choose.choice(list(state) if isinstance(state, dict) else range(len(state)))
    inside = state[key]
    if isinstance(inside, dict | list) and inside and choose.random() < 0.85:
        mutate(inside, choose)
    elif isinstance(state, list) or choose.random() < 0.7:
        state[key] = changed(inside, choose)
    else:
        state[choose.choice([f"{key}.", "", 7, (1, 2), None])] = state.pop(key) if choose.random() < 0.7 else inside


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The smallest of checkpoints, a packed file of it, and a file that nobody may touch."""
    folder = tmp_path_factory.mktemp("strangers")
    asked = {"model": {"name": MODEL}, "data": {"image_size": 8, "limit": 4}, "quant": {"method": "ptq"}}
    own = resolved(TrainSettings.model_validate(asked))
    model = quant.prepare(models.build(own.model.name, 10, 8, {}), quant.resolve(own.quant))
    quant.calibrate(model, [torch.randn(4, 3, 8, 8)])
    seen = data.Dataset(None, None, [str(i) for i in range(10)], (0.5,) * 3, (0.25,) * 3, False)
    tensor_file.save(folder / "good.pt", checkpoint.pack(model, own.model_dump(), seen, True, 1))
    quant.export_packed(model.eval(), folder / "good.npz", 8, {})
    (folder / "summary.json").write_text("mine")
    return folder


@pytest.fixture(scope="module", autouse=True)
def little_memory(folder):
    """Whatever a file says, it takes no more than 1 GB more than the intact ones."""
    outcome(folder, "good.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "in kB"


def outcome(folder: Path, name: str) -> int:
    """The exit code of evaluate.py, which says one line or nothing on stderr and touches nothing."""
    said, code = io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        given = [f"checkpoint={folder / name}", 'engines=["reference"]', f"trust={MODEL}"]
        patch.setattr("sys.argv", ["evaluate.py", *given])
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                errors.run(evaluation.main)
            except SystemExit as stopped:
                code = stopped.code
    assert code in (0, 2)
    assert len(said.getvalue().splitlines()) == (1 if code else 0), said.getvalue()
    assert "\x1b" not in said.getvalue()
    assert (folder / "summary.json").read_text() == "mine"
    return code


def test_the_checkpoint_itself_is_measured(folder):
    assert outcome(folder, "good.pt") == 0


@settings(max_examples=FAULTS or 60, **MANY)
@given(seed=st.integers(0, 2**32))
def test_a_checkpoint_of_which_anything_was_changed(seed, folder):
    choose = random.Random(seed)
    state = torch.load(folder / "good.pt", weights_only=True)
    state.pop(tensor_file.CHECKSUM)
    for _ in range(choose.choice([1, 1, 1, 3])):
        mutate(state, choose)
    torch.save(state, folder / "bad.pt")
    outcome(folder, "bad.pt")


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_checkpoint_with_another_count_of_means_than_of_channels(key, count, folder, capsys):
    state = torch.load(folder / "good.pt", weights_only=True)
    state.pop(tensor_file.CHECKSUM)
    torch.save(state | {key: [0.5] * count}, folder / "bad.pt")
    assert outcome(folder, "bad.pt") == 2


@settings(max_examples=FAULTS or 40, **MANY)
@given(seed=st.integers(0, 2**32))
def test_a_packed_file_of_which_anything_was_changed(seed, folder):
    choose = random.Random(seed)
    with numpy.load(folder / "good.npz") as file:
        arrays = dict(file)
    model = json.loads(str(arrays.pop("model")))
    if choose.random() < 0.7:
        mutate(model, choose)
    else:
        name = choose.choice(list(arrays))
        arrays[name] = choose.choice([arrays[name][:-3], arrays[name] * 0, arrays[name][None], numpy.zeros(2)])
    numpy.savez(folder / "bad.npz", model=numpy.array(json.dumps(model, default=str, skipkeys=True)), **arrays)
    with contextlib.suppress(UserError):
        assert torch.is_tensor(quant.load_packed(str(folder / "bad.npz"))(torch.zeros(1, 3, 8, 8)))


@pytest.mark.parametrize("step", [0.0, -1.0, 1e-45])
def test_a_step_of_zero_or_below_counts_as_the_least_scale_on_every_engine(step):
    """As in training, where the next step of the optimizer may leave it there."""
    model = quant.prepare(models.build(MODEL, 10, 8, {}), quant.resolve(quant.parse(method="lsq")))
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model.train()(images)
    name = next(name for name in model.state_dict() if name.endswith("weight_quantizer.s"))
    logits = []
    for value in (step, 2.0**-24):
        model.load_state_dict(model.state_dict() | {name: torch.full_like(model.state_dict()[name], value)})
        with torch.inference_mode():
            logits += [quant.convert(model.eval(), engine)(images) for engine in ("reference", "x86", "onednn")]
        assert quant.without_range(model) == [name.removesuffix(".s")]
    assert all(torch.equal(logits[0], other) for other in logits[1:])
