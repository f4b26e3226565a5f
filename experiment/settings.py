"""The types of the settings: setting/train.json, setting/evaluate.json and setting/latency.json.

Keys are described where they are read: the quant section in quant/core/settings.py and in each method's file, the data
section in data/settings.py and next to each loader, the optim section in utils/training/optim.py. This module combines
them, and brings settings of earlier versions up to date.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, create_model

import quant
from data import DATASETS, DataSettings, looks_like_imagefolder, switch_dataset
from data import SECTIONS as data_sections
from quant import SECTIONS as quant_sections
from quant import QuantSettings
from quant.methods import gradboost
from utils.config import rename, rename_values, validate
from utils.sections import NO_SOURCE, PathText, RunName, Section, variants
from utils.training import optim
from utils.training.optim import OptimSettings

NOT_OF_FOLDERS = [name for name in DATASETS if name not in ("imagefolder", "imagenet")]
"""Datasets whose root holds no folders of classes."""
RENAMED = {
    "quant.equalize": "quant.cross_layer_equalization",
    "quant.correct": "quant.bias_correction",
    "quant.damping": "quant.oscillation_dampening",
    "quant.norm_images": "quant.bn_reestimation_images",
}
"""Keys of earlier versions, and what they are called now."""
AUGMENT = {"true": "crop", "false": "none"}
"""Values of data.augment in earlier versions, as JSON writes them, and what they are called now."""


Count = Annotated[int, Field(ge=1)]
Counts = Count | Annotated[list[Count], Field(min_length=1)]
"""A number, or several that are tried one after the other."""
Trust = bool | Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
"""Whose code a checkpoint may call beyond what utils/importing.py says: nobody's, anybody's, or one function's."""
Axis = list[Any] | dict[str, dict[str, Any]]
"""Of a sweep: the values of a key, or names with the keys they stand for."""


def _boosted(plain: type[Section]) -> type[Section]:
    """The options of an optimizer with GradBoost: its own and GradBoost's."""
    return create_model(f"Boosted {plain.__name__}", __base__=(gradboost.Options, plain), __cls_kwargs__=NO_SOURCE)


_PLAIN = {name: row.options for name, row in optim.PLAIN.items()}
_BOOSTED = {name: _boosted(row.options) for name, row in optim.BOOSTED.items()}
OPTIM_SECTIONS = variants("name", OptimSettings, _PLAIN | _BOOSTED, "sgd")
"""The optim section for each optimizer: the common keys and the optimizer's options."""


class ModelSettings(Section):
    """The model section of a setting; models.check says what options a model has."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    name: str = "resnet20"
    """The network: a row of models.MODELS. Further keys are that model's own options."""
    weights: PathText | None = None
    """A checkpoint or state dict to start from; "pretrained": what torchvision or timm publishes for the model,
    downloaded into their caches; or null: from scratch."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class RunSettings(Section):
    epochs: int = Field(20, ge=0)
    """Passes over the training images, the float ones included."""
    seed: int = Field(1882, ge=0, lt=2**63)
    """Seed of initial weights, data order, augmentation and noise."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Arithmetic of convolutions in training; quantizers always compute in fp32. auto: the faster one here."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Compile quantizers (torch.compile), some 20 seconds at the start; auto: where training is long."""
    device: str = "auto"
    """Where training runs, as torch names it; auto: an accelerator if there is one. Integer engines run on the CPU."""
    dir: PathText = "runs"
    """Folder of all runs."""
    name: RunName | None = None
    """This run's folder; null: the name of the setting file."""
    resume: PathText = "auto"
    """auto: continue an interrupted run of this name and setting; never: start from scratch; else: a checkpoint to
    continue from."""
    checkpoint_minutes: float = Field(10.0, gt=0)
    """Minutes between checkpoints within an epoch; there is one at each epoch's end anyway."""
    deterministic: bool = False
    """Only algorithms that give the same bits each time, on accelerators too. CPUs do so anyway."""
    tf32: bool = False
    """An accelerator multiplies fp32 numbers in TensorFloat-32: faster, but with 10 bits of mantissa instead of 23."""
    tensorboard: bool = False
    """Event files for TensorBoard, too (pip install tensorboard)."""
    engines: list[str] | None = None
    """Engines measured when training ends; null: quant.engine alone."""

    @property
    def folder(self) -> Path:
        """dir / name. Raises ValueError for settings whose name has not been filled in (experiment/check.py)."""
        if self.name is None:
            raise ValueError("run.name has not been filled in")
        return Path(self.dir) / self.name


class SweepSettings(Section):
    """The sweep section: where the cells run, and, under every other key, an axis of values."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Axis]

    on: Literal["here", "ray"] = "here"
    """Where the runs of a sweep are: here, one after the other; or on Ray (pip install ray), as many at a time as there
    are CPUs and GPUs for. Any further key is an axis: {"quant.act_bits": [2, 4]}, or names with the keys they stand
    for. There is a run for every combination."""
    address: str | None = None
    """HOST:PORT of the head of a Ray cluster, or auto: the one that this machine is in; null: this machine alone."""
    cpus: int = Field(1, ge=1)
    """CPUs of each run on Ray, and its threads."""
    gpus: Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] = 0
    """GPUs of each run on Ray; 0.5: two runs share one."""

    @property
    def axes(self) -> dict[str, Axis]:
        return dict(self.model_extra or {})


class TrainSettings(Section):
    """A training setting, such as setting/train.json: one run, or a sweep of them."""

    note: str = ""
    """What this setting does and what it costs."""
    data: Annotated[DataSettings, data_sections] = Field(default_factory=data_sections.make_default)
    model: ModelSettings = ModelSettings()
    quant: Annotated[QuantSettings, quant_sections] = Field(default_factory=quant_sections.make_default)
    optim: Annotated[OptimSettings, OPTIM_SECTIONS] = Field(default_factory=OPTIM_SECTIONS.make_default)
    run: RunSettings = RunSettings()
    sweep: SweepSettings = SweepSettings()

    @property
    def engines(self) -> list[str]:
        """The engines that are measured when training ends."""
        return [self.quant.engine] if self.run.engines is None else self.run.engines

    @property
    def float_epochs(self) -> int:
        """Epochs that the run trains in float, before fake-quantization begins."""
        return quant.float_epochs(quant.resolve(self.quant), self.run.epochs)

    @property
    def ends_in_float(self) -> bool:
        """Whether the last epoch is in float, so that the model is quantized after training or not at all."""
        return quant.ends_in_float(quant.resolve(self.quant), self.run.epochs)

    @classmethod
    def rename(cls, values: dict) -> list[str]:
        """RENAMED and AUGMENT, in the sections, in dotted keys, and in those of a sweep."""
        tables, sweep = [values], values.get("sweep")
        if isinstance(sweep, dict):
            groups = [group for axis in sweep.values() if isinstance(axis, dict) for group in axis.values()]
            tables += [sweep, *(group for group in groups if isinstance(group, dict))]
        notices = [notice for table in tables for notice in rename(table, RENAMED)]
        notices += [notice for table in tables for notice in rename_values(table, "data.augment", AUGMENT)]
        return list(dict.fromkeys(notices))

    @classmethod
    def adapt_to_overrides(cls, values: dict, overrides: Mapping[str, Any]) -> list[str]:
        """Another dataset on the command line takes none of the keys that are the file's dataset's, nor its note.

        A data.root alone that holds folders of classes asks for imagefolder.
        """
        section = values.get("data", {})
        if not isinstance(section, dict):
            return []
        there, notices = section.get("name", data_sections.default), []
        name = overrides.get("data.name", there)
        if "data.name" not in overrides and there in NOT_OF_FOLDERS and _asks_for_folders(overrides):
            name = "imagefolder"
            notices = [f"data.root={overrides['data.root']} holds folders of classes: data.name=imagefolder"]
        if name == there or not isinstance(name, str):
            return notices
        values["data"], left_out = switch_dataset(section, name)
        values.pop("note", None)
        lines = [f"data.{key}={json.dumps(section[key])}" for key in left_out if f"data.{key}" not in overrides]
        return [*notices, f"{' and '.join(lines)} of the file: for {there}, not taken over"] if lines else notices


def _asks_for_folders(overrides: Mapping[str, Any]) -> bool:
    root = overrides.get("data.root")
    return isinstance(root, str) and looks_like_imagefolder(root)


class EvaluateSettings(Section):
    """setting/evaluate.json: measure a checkpoint."""

    bare_key: ClassVar[str] = "checkpoint"

    note: str = ""
    """What this setting does and what it costs."""
    checkpoint: PathText = "runs/train/last.pt"
    """The checkpoint, the folder of a run, or an exported model: .npz, .onnx, .pte, .tflite, or a folder with
    a model.pt2."""
    images: PathText | None = None
    """A picture, or a folder of them: instead of a measurement, what the model says of them, by the first of engines.
    predictions.csv has the five likeliest classes of each."""
    engines: list[str] | None = None
    """Engines to convert to and measure; rows of quant.ENGINES. null: those of PyTorch; with export, none, so that
    nothing is measured."""
    output: PathText | None = None
    """Folder for evaluation.json and evaluation.html; null: that of the checkpoint."""
    export: PathText | None = None
    """Folder to write the integer model to, as a file that runs without this repository; or the name of an ONNX file,
    in .onnx, of one as small as its bits, in .npz, of a program for ExecuTorch, in .pte, or for LiteRT, in .tflite;
    null: none."""
    sensitivity: bool = False
    """Measure each layer, too: the test images pass twice a layer. sensitivity.csv and .png next to evaluation.json."""
    data: dict[str, Any] = Field({})
    """Keys of the data section that override the run's own, to measure on other images. Where they name another
    dataset, keys of the run's that it does not read are left out."""
    compare: list[PathText] = Field([])
    """Folders of finished runs: instead of measuring a checkpoint, compare them in one page, report.html in `output`
    (null: runs/compare)."""
    trust: Trust = False
    """Let the checkpoint call functions that are not your own, which it names as its model's factory or its dataset:
    true, or the name of the one function, `package.module:function`."""


class LatencySettings(Section):
    """setting/latency.json: time models, float and integer, on this CPU."""

    bare_key: ClassVar[str] = "models"
    bare_keys_are_a_list: ClassVar[bool] = True

    note: str = ""
    """What this setting does and what it costs."""
    models: list[PathText | dict[str, Any]] = Field(["resnet18", "mobilenet_v2"], min_length=1)
    """Names, or {"name": ...} with the model's options, or finished runs: a run's folder or checkpoint."""
    engines: list[str] = Field(["fbgemm", "x86"], min_length=1)
    """Engines to time; rows of quant.ENGINES."""
    image_size: int = Field(224, ge=8, le=1024)
    """Side of the images in pixels. A run brings its own."""
    batch_size: Counts = 1
    """Images per call. Of a list, [1, 8, 32], each is timed, and the table also has images per second."""
    num_classes: int = Field(1000, ge=2)
    """Outputs of models that are given by name."""
    threads: Counts | None = None
    """Threads of each engine. Of a list, [1, 2], each is timed. null: as many as torch takes by itself."""
    warmup: int = Field(10, ge=0)
    """Calls of each model before any is timed."""
    repeats: int = Field(50, ge=1)
    """Timed calls of each model."""
    profile: bool = False
    """Also time each operator by itself, and say why the slowest are slow: latency-profile.csv and .png."""
    dir: PathText = "runs/latency"
    """Folder of the tables and the picture."""
    trust: Trust = False
    """Let a checkpoint call a function that is not your own, which it names as its model's factory: true, or its
    name, `package.module:function`."""


def resolved(settings: TrainSettings) -> TrainSettings:
    """The settings with the defaults of methods and schedules filled in. Raises UserError for what cannot work."""
    flat = quant.parse(**quant.resolve(settings.quant).flat())
    return settings.model_copy(update={"quant": flat, "optim": optim.resolve(settings.optim)})


def stored(values: dict[str, Any], source: str) -> TrainSettings:
    """The resolved setting that a checkpoint or a config.json holds, of this version or an earlier one."""
    return resolved(validate(TrainSettings, _migrated(values), source))


def stored_values(values: dict[str, Any], source: str) -> dict[str, Any]:
    """The same as the JSON-able values that this version writes."""
    return stored(values, source).model_dump(mode="json")


def _migrated(values: dict[str, Any]) -> dict[str, Any]:
    """Without the keys that the section's method, optimizer, schedule or dataset does not read.

    Checkpoints of format 3 hold the keys of all of them, the others' at their defaults.
    """
    values = copy.deepcopy(values)
    TrainSettings.rename(values)
    for name, kinds in (("data", data_sections), ("quant", quant_sections), ("optim", OPTIM_SECTIONS)):
        section = values.get(name)
        kind = kinds.kinds.get(kinds.name(section))
        if isinstance(section, dict) and kind is not None and kind.model_config.get("extra") == "forbid":
            values[name] = {k: v for k, v in section.items() if k in kind.model_fields or not kinds.readers(k)}
    if isinstance(values.get("optim"), dict) and values["optim"].get("schedule") != "step":
        values["optim"].pop("milestones", None)
    return values
