"""Settings: one JSON file is one experiment, and these types are the only place where a key is described.

Every section is frozen and refuses keys it does not know. `load` reads a file, lays `section.key=value` overrides over
it and reports a mistake in one line: file, key, what is wrong, the nearest right thing.
"""

import argparse
import contextlib
import json
import os
import re
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    WithJsonSchema,
)

from utils.errors import UserError, nearest


def _bits(value: int) -> int:
    if value != 32 and not 1 <= value <= 8:
        raise ValueError(f"{value} bits; choose 1..8, or 32 for float")
    return value


Bits = Annotated[int, AfterValidator(_bits), WithJsonSchema({"type": "integer", "enum": [*range(1, 9), 32]})]


def _run_name(value: str) -> str:
    parts = value.split("/")
    if not all(re.fullmatch(r"[\w.=,+ -]+", part) and part.strip(". ") for part in parts):
        raise ValueError("a name is letters, digits and . = , + - _, with / between folders")
    return value


RunName = Annotated[str, AfterValidator(_run_name)]
PathText = Annotated[str, AfterValidator(os.path.expanduser)]
"""A file or folder; ~ is the user's own."""


def as_name(text: str) -> str:
    """A run's name that is as near to a text as a name can be."""
    return re.sub(r"[^\w.=,+ -]", "_", text)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class DataSettings(Section):
    name: str = "digits"
    """The dataset: a row of data.DATASETS."""
    root: PathText = "datasets"
    """Folder of the files. imagefolder: the one that holds train/ and val/ or test/."""
    image_size: int = Field(32, ge=8, le=1024)
    """Side of the square images that the model sees, in pixels."""
    batch_size: int = Field(128, ge=1, le=2**20)
    """Images a training step, of all processes together. Evaluation takes its own batches."""
    workers: int = Field(2, ge=0)
    """Threads (images kept in memory) or processes (large images) that decode image files."""
    augment: bool = True
    """Random crop and, where the dataset allows it, horizontal flip of the training images."""
    limit: int | None = Field(None, ge=1)
    """Take only this many images (of a fixed shuffle) of the training and of the test set, for trials."""
    on_error: Literal["fail", "skip"] = "fail"
    """An image file that cannot be read: it is named, and the run ends, or goes on without it."""
    cache: Literal["auto", "always", "never"] = "auto"
    """imagefolder: decode images once, to image_size, and keep them in memory, or anew each epoch, with random resized
    crops of the files as they are. auto: kept where all fit in 2 GB."""
    val_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the training images held out to choose best.pt by. 0: no best.pt; the test set never chooses."""


class ModelSettings(Section):
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    name: str = "resnet20"
    """The network: a row of models.MODELS. Further keys are that model's own options."""
    weights: PathText | None = None
    """A checkpoint or state dict to start from, or null: from scratch."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class LayerBits(Section):
    """Bits of one layer; null: as the rest of the section says."""

    weight_bits: Bits | None = None
    """Bits of its weights; 32 leaves them float."""
    act_bits: Bits | None = None
    """Bits of what it reads; 32 for float, unless another layer reads the same in integers."""


class QuantSettings(Section):
    method: str = "statassist"
    """How low precision is reached: a row of quant.METHODS."""
    weight_bits: Bits = 8
    """Bits of the weights; 32 leaves them float."""
    act_bits: Bits = 8
    """Bits of what convolutions and linear layers read; 32 leaves all activations float."""
    first_last_bits: Bits | Literal["same"] = 8
    """Bits of the first and last layer's weights and of the last layer's input. The image always has 8."""
    residual_bits: Bits = 8
    """Bits of what additions, pools and other element-wise operators read."""
    layers: dict[str, LayerBits | Literal["float"]] | Literal["auto"] = {}
    """Bits of layers by name, before all else: {"layer4.*": {"weight_bits": 4}, "fc": "float"}; * and ? match. auto:
    weight bits of each layer, up to what it would have, are chosen for a target; config.json has them by name."""
    target_drop: float | None = Field(None, ge=0, lt=100)
    """layers auto: percent of held-out training images whose first choice may change, and so the most that top-1 of
    the float net falls by on them. With layers by name: what they were chosen for."""
    target_mb: float | None = Field(None, gt=0)
    """layers auto: the most MB of weights, scales and biases at their own bits. With layers by name: as above."""
    grad_bits: Bits = 32
    """DoReFa: bits of the gradients that hidden layers hand back, 1..8; 32 leaves them float."""
    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    """Weight scales: one an output channel, or one a layer."""
    engine: str = "fbgemm"
    """The integer engine that the run is meant for; evaluate.py measures any of them."""
    reduce_range: bool | Literal["auto"] = "auto"
    """Keep integer weights within +-63, which int8 kernels without VNNI need to be exact. auto: as this CPU needs."""
    observer: Literal["minmax", "moving_average", "percentile", "mse"] | None = None
    """How ranges are found; null: the method's own default."""
    percentile: float = Field(99.99, gt=50.0, le=100.0)
    """Observer percentile: values beyond this percentile are clipped, at either end of the range."""
    calibration_images: int = Field(1024, ge=1)
    """Training images, without augmentation, that post-training ranges, roundings and corrections are found on."""
    recipe: Literal["plain", "best"] = "plain"
    """PTQ: what the keys of these options that are null stand for: a row of quant.ptq.RECIPES."""
    equalize: bool | None = None
    """PTQ: even out the ranges of channels across layers, where that leaves the float net as it is."""
    rounding: Literal["nearest", "adaround", "brecq"] | None = None
    """PTQ: weights to the nearest integer, or up or down as is learned, layer by layer or block by block."""
    rounding_steps: int | None = Field(None, ge=1)
    """PTQ: optimiser steps of learned rounding, for each layer (adaround) or block (brecq)."""
    drop: float | None = Field(None, ge=0, le=1)
    """PTQ, brecq: share of the activations that each step of learned rounding leaves in float, as QDrop does."""
    correct: Literal["none", "bias", "norm"] | None = None
    """PTQ: match the mean (bias), or mean and variance (norm), of each channel to the float net's."""
    norm_images: int = Field(0, ge=0)
    """Training images on which batch norm's statistics are found anew when quantized training ends; 0: as it left
    them."""
    teacher: PathText | None = None
    """A checkpoint of train.py, of the float net, say, whose answers are learned beside the labels; null: none."""
    teacher_share: float = Field(0.5, gt=0, le=1)
    """Teacher: its share of the loss; the labels have the rest."""
    temperature: float = Field(1.0, gt=0)
    """Teacher: what both nets' logits are divided by before they are compared."""
    damping: float = Field(0.0, ge=0)
    """LSQ, StatAssist: how strongly, in the end, weights are drawn to the middle of their integer, against hopping."""
    step_init: Literal["paper", "mse"] = "paper"
    """LSQ: where steps start: from the mean of |v| as in the paper, or at the least squared error."""
    act_clip: Literal["calibration"] | PositiveFloat = 1.0
    """DoReFa: where activations are clipped; 1 is the paper's, calibration suits a trained float net."""
    weights: Literal["sawb", "dorefa"] = "sawb"
    """PACT: how weights are quantized; dorefa is the paper's, sawb (its authors' later one) does 8 bits, too."""
    alpha_init: Literal["calibration"] | PositiveFloat = "calibration"
    """PACT: where the clips alpha start; calibration: at the least squared error of the first batch."""
    alpha_decay: float = Field(2e-4, ge=0)
    """PACT: lambda of the loss's lambda alpha^2, a clip."""
    signed_edges: Literal["clip", "affine"] = "clip"
    """DoReFa, PACT: hidden inputs that can be negative: clipped at either side on act_bits, or affine on 8 bits."""
    float_epochs: int = Field(1, ge=0)
    """StatAssist: epochs in float, at the start of the run, before fake-quantization switches on."""

    @property
    def weight_limit(self) -> int:
        """The largest integer weight: int8's, or what kernels without VNNI multiply exactly."""
        return 63 if self.reduce_range else 127

    @property
    def by_name(self) -> dict[str, LayerBits | Literal["float"]]:
        """`layers`; none while they are yet to be chosen."""
        return {} if self.layers == "auto" else self.layers


class OptimSettings(Section):
    name: str = "sgd"
    """The optimizer: a row of utils.optim.OPTIMIZERS."""
    lr: float = Field(0.1, gt=0)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd and rmsprop."""
    nesterov: bool = True
    """Nesterov momentum (sgd)."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 (sgd, rmsprop, adam) or decoupled (adamw) decay of the parameters that `decay` names."""
    decay: Literal["weights", "all", "statassist"] = "weights"
    """Who decays: a row of utils.optim.DECAYS. What quantizers learn has a decay of its own."""
    learned_lr: float = Field(1.0, gt=0)
    """Learning rate of what quantizers learn (LSQ's steps, PACT's clips), as a share of lr."""
    schedule: Literal["cosine", "step", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up: a row of utils.schedule.SCHEDULES."""
    warmup_epochs: float = Field(1.0, ge=0)
    """Epochs of linear warm-up from 0; set anew at every step."""
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = [0.5, 0.75]
    """Schedule step: shares of what follows the warm-up, after which the rate is divided by ten."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread over all classes."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay, 0.999, say, of the average of the weights over the steps, which the run ends with; 0: the last weights."""
    clip_norm: float | None = Field(None, gt=0)
    """Scale the gradients down to this norm of all together where they pass it; null: never."""
    mode: Literal["intended", "reference"] = "intended"
    """GradBoost (qsgd ..): as its idea is, or as its authors' code does it; methods/gradboost.py tells both."""
    clip_by: float = Field(1e-3, ge=0)
    """GradBoost: the largest noise added to an element of a gradient; 0: no limit."""
    noise_decay: float = Field(1e-2, ge=0, lt=1)
    """GradBoost: share of the noise that each boosted step takes away."""
    toss_coin: bool = True
    """GradBoost: a coin for each element decides whether it is boosted."""


class RunSettings(Section):
    epochs: int = Field(20, ge=0)
    """Passes over the training images, the float ones included."""
    seed: int = Field(1882, ge=0, lt=2**63)
    """Seed of initial weights, data order, augmentation and noise."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Arithmetic of convolutions in training; quantizers always compute in fp32. auto: the faster for this net here."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Quantizers as loops of their own (torch.compile), some 20 seconds at the start; auto: where training is long."""
    device: str = "auto"
    """Where training runs, as torch names it; auto: an accelerator if there is one. Integer engines run on the CPU."""
    dir: PathText = "runs"
    """Folder of all runs."""
    name: RunName | None = None
    """This run's folder; null: the name of the setting file."""
    resume: PathText = "auto"
    """auto: go on with an interrupted run of this name and setting; never: begin anew; else a checkpoint to take up."""
    checkpoint_minutes: float = Field(10.0, gt=0)
    """Minutes between checkpoints within an epoch; there is one at each epoch's end anyway."""
    deterministic: bool = False
    """Only algorithms that give the same bits each time, on accelerators too. CPUs do so anyway."""
    tensorboard: bool = False
    """Event files for TensorBoard, too (pip install tensorboard)."""
    engines: list[str] | None = None
    """Engines measured when training ends; null: quant.engine alone."""


class TrainSettings(Section):
    """setting/train.json and its kin: one training run, or a sweep of them."""

    note: str = ""
    """What this setting does and what it costs."""
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    quant: QuantSettings = QuantSettings()
    optim: OptimSettings = OptimSettings()
    run: RunSettings = RunSettings()
    sweep: dict[str, list[Any] | dict[str, dict[str, Any]]] = {}
    """A run for every combination: {"quant.act_bits": [2, 4]}, or names with the keys they stand for."""


class EvaluateSettings(Section):
    """setting/evaluate.json: measure a checkpoint."""

    note: str = ""
    """What this setting does and what it costs."""
    checkpoint: PathText = "runs/train/last.pt"
    """The checkpoint, written by train.py."""
    engines: list[str] = ["reference", "fbgemm", "qnnpack", "x86", "onednn"]
    """Engines to convert to and measure; rows of quant.ENGINES."""
    output: PathText | None = None
    """Folder for evaluation.json; null: beside the checkpoint."""
    export: PathText | None = None
    """Folder to write the integer model to, as a file that runs without this repository; or the name of an ONNX file,
    in .onnx, or of one as small as its bits, in .npz; null: none."""
    sensitivity: bool = False
    """Measure each layer, too: the test images pass twice a layer. sensitivity.csv and .png beside evaluation.json."""
    data: dict[str, Any] = {}
    """Keys of the data section laid over the run's own, to measure on other images."""
    trust: bool = False
    """Let the checkpoint call the function of an installed package that it names as its model's factory."""


class LatencySettings(Section):
    """setting/latency.json: time models, float and integer, on this CPU."""

    note: str = ""
    """What this setting does and what it costs."""
    models: list[PathText | dict[str, Any]] = Field(["resnet18", "mobilenet_v2"], min_length=1)
    """Names, or {"name": ...} with the model's options, or finished runs: a run's folder or checkpoint."""
    engines: list[str] = Field(["fbgemm", "x86"], min_length=1)
    """Engines to time; rows of quant.ENGINES."""
    image_size: int = Field(224, ge=8, le=1024)
    """Side of the images in pixels. A run brings its own."""
    batch_size: int = Field(1, ge=1)
    """Images a call."""
    num_classes: int = Field(1000, ge=2)
    """Outputs of models that are given by name."""
    threads: int | None = Field(None, ge=1)
    """Threads of torch; null: as many as torch takes by itself."""
    warmup: int = Field(10, ge=0)
    """Calls of each model before any is timed."""
    repeats: int = Field(50, ge=1)
    """Timed calls of each model."""
    dir: PathText = "runs/latency"
    """Folder of the tables and the picture."""
    trust: bool = False
    """Let a checkpoint call the function of an installed package that it names as its model's factory."""


S = TypeVar("S", bound=BaseModel)
LARGEST, DEEPEST = 2**20, 32
"""Bytes of a setting file, and brackets within brackets."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"command line: {message}; --help tells what there is")


def parser(description: str, default: str, choices: Iterable[str]) -> argparse.ArgumentParser:
    """The command line that all scripts share; `choices` are what --list can list."""
    cli = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("-c", "--config", default=default, metavar="FILE", help=f"setting file (default: {default})")
    cli.add_argument("--list", choices=list(choices), help="print the names to choose from, and stop")
    cli.add_argument("--print-config", action="store_true", help="print the resolved setting and stop")
    cli.add_argument("overrides", nargs="*", metavar="section.key=value", help="lay a value over the file's")
    return cli


def load(kind: type[S], path: str, overrides: list[str]) -> S:
    """Read a setting file, lay the overrides over it and check it all.

    Values of overrides are JSON where they parse as JSON, else strings. Raises UserError in one line.
    """
    values, overridden = _read(path), set()
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"command line: {text!r} is not of the form section.key=value")
        overridden.add(key)
        _lay(values, key.split("."), _json_or_text(value), f"command line: {key}")
    return check(kind, values, path, overridden)


@contextlib.contextmanager
def blame(source: str) -> Iterator[None]:
    """Open the message of a UserError raised within with the name of the setting file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def check(kind: type[S], values: dict, source: str, overridden: set[str] = frozenset()) -> S:
    """`values` as an immutable, checked `kind`; `source` (a file name) opens the message of a mistake."""
    try:
        return kind.model_validate_json(json.dumps(values))
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):  # a tensor, say, in the setting of a checkpoint
            raise UserError(f"{source}: not plain values: {error}") from None
        raise UserError(_one_line(kind, error.errors()[0], source, overridden)) from None


def vary(settings: S, overrides: dict[str, Any], source: str) -> S:
    """The settings with values laid over them; keys are dotted."""
    values = json.loads(settings.model_dump_json())
    for key, value in overrides.items():
        _lay(values, key.split("."), value, f"{source}: {key}")
    return check(type(settings), values, source)


def _read(path: str) -> dict:
    try:
        if Path(path).stat().st_size > LARGEST:
            raise UserError(f"{path}: larger than a setting can be ({LARGEST / 1e6:.0f} MB)")
        values = _parsed(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        beside = [str(p) for p in Path(path).parent.glob("*.json")] if Path(path).parent.is_dir() else []
        hint = nearest(path, beside)
        raise UserError(f"{path}: {error.strerror or error}" + (f", did you mean {hint}?" if hint else "")) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object")
    values.pop("$schema", None)  # for editors
    return values


def _parsed(text: str) -> Any:
    """JSON, strictly: no NaN, nothing twice, and no deeper than a setting can be. Raises ValueError."""
    depth = 0
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(bracket, 0)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} brackets deep")
    return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_once)


def _finite(text: str) -> float:
    return float(text) if abs(float(text)) < float("inf") else _refuse(text)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not a number")


def _once(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in names if names.count(key) > 1)} is there twice")
    return found


def _json_or_text(value: str) -> Any:
    try:
        return _parsed(value)
    except ValueError:
        return value


def _lay(values: dict, keys: list[str], value: Any, where: str) -> None:
    if len(keys) > DEEPEST:
        raise UserError(f"{where[:80]} ...: more than {DEEPEST} keys deep")
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UserError(f"{where}: {key} is not a section")
    values[keys[-1]] = value


def _one_line(kind: type[BaseModel], error: dict, source: str, overridden: set[str]) -> str:
    keys = _own_keys(kind, error["loc"])
    dotted = ".".join(keys)
    laid_over = any(f"{dotted}.".startswith(f"{key}.") for key in overridden)
    where = f"{'command line' if laid_over else source}: {dotted}"
    if error["type"] == "extra_forbidden":
        hint = nearest(keys[-1], _fields(kind, keys[:-1]))
        return f"{where}: unknown key" + (f", did you mean {hint}?" if hint else "")
    message = error["msg"].removeprefix("Value error, ")
    shown = json.dumps(error["input"], default=str)
    word = nearest(str(error["input"]), re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", ""))))
    return f"{where}: {message[0].lower()}{message[1:]}, not {shown}" + (f" (nearest: {word})" if word else "")


def _own_keys(kind: type[BaseModel], location: tuple) -> list[str]:
    """The JSON keys in a pydantic location, without the names it adds for the branches of a union."""
    keys: list[str] = []
    for part in location:
        inside = _inside(kind, keys)
        if inside is None:
            break
        branch = str(part).startswith("dict[") if inside is dict else part == inside.__name__
        if not branch:
            keys.append(str(part))
    return keys


def _fields(kind: type[BaseModel], keys: list[str]) -> list[str]:
    section = _inside(kind, keys)
    return [] if section in (None, dict) else list(section.model_fields)


def _inside(kind: Any, keys: list[str]) -> Any:
    """What lies under these keys of a section: a section, dict for a table of any keys, or None for a plain value."""
    for key in keys:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[key].annotation if key in kind.model_fields else None
        else:
            kind = typing.get_args(kind)[1]
        if not _is_table(kind):
            kind = next((branch for branch in typing.get_args(kind) if _is_section(branch) or _is_table(branch)), kind)
    return kind if _is_section(kind) else dict if _is_table(kind) else None


def _is_table(kind: Any) -> bool:
    return typing.get_origin(kind) is dict


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
