"""What evaluate.py does: rebuild the model of a checkpoint and measure it, float, simulated and on every engine."""

import difflib
import functools
from pathlib import Path
from typing import Any

from torch import fx, nn

import data
import models
import quant
from experiment import cli, comparison, datasets, exported, exported_evaluation, prediction, run_results
from experiment.check import check_engines
from experiment.rebuild import rebuild
from experiment.report import confusion, html, run_report, sensitivity_table
from experiment.report.accuracy_table import accuracy_table
from experiment.settings import EvaluateSettings, TrainSettings
from utils import files
from utils.config import blame
from utils.console import say
from utils.errors import UserError
from utils.runs import tensor_file
from utils.runs.folder import differences

ALL = ("reference", "fbgemm", "qnnpack", "x86", "onednn")
"""Engines of PyTorch, which are measured unless others are named."""
LOCATION = (*data.TRAINING_ALONE, "root", "workers", "on_error", "cache", "val_fraction", "mean", "std")
"""Keys of the data section with any value of which the test images are the same."""
EXPORTERS = {
    ".onnx": quant.export_onnx,
    ".npz": quant.export_packed,
    ".pte": quant.export_executorch,
    ".tflite": quant.export_litert,
}
"""Functions that write a single file, by its suffix. A path without a suffix is a folder for quant.export."""
CHECKS = {".onnx": quant.check_onnx, ".pte": quant.check_executorch, ".tflite": quant.check_litert}
"""Functions that refuse a suffix whose packages are missing."""


def main(arguments: list[str], description: str | None = __doc__) -> None:
    """Run evaluate.py with this command line."""
    cli.main(arguments, description, "setting/evaluate.json", EvaluateSettings, plan, comparison.find_conflict)


def plan(settings: EvaluateSettings, setting_file: str) -> cli.Job:
    """The evaluation that the settings describe. Raises UserError for what can be refused without the checkpoint."""
    if settings.compare:
        comparison.check(settings.compare)
        return cli.Job(settings, functools.partial(comparison.compare, settings))
    check_engines(settings.engines or [], "engines")
    check_overrides(settings.data)
    path = measured_file(settings.checkpoint)
    if exported.is_export(path):
        exported.check_asked(settings)
    if settings.images is not None:
        prediction.check(settings)
    if settings.export:
        check_suffix(settings.export)
    usual = [] if settings.export else [*ALL]
    engines = usual if settings.engines is None else settings.engines
    settings = settings.model_copy(update={"checkpoint": path, "engines": engines})
    if settings.images is not None:
        return cli.Job(settings, functools.partial(prediction.predict, settings))
    evaluated = exported_evaluation.evaluate if exported.is_export(path) else evaluate
    return cli.Job(settings, functools.partial(evaluated, settings, setting_file))


def measured_file(path: str) -> str:
    """The file that a checkpoint, the folder of a run or an export stands for. Raises UserError if there is none."""
    if exported.is_export(path):
        return path
    if data.is_named_as_image(path):
        raise UserError(f"checkpoint: {path} is a picture; images={path} asks a checkpoint what it sees in it")
    found = run_results.checkpoint_of(path) if Path(path).is_dir() else path
    tensor_file.check_exists(found)
    return found


def check_suffix(target: str) -> None:
    """Raise UserError if an export has an ending that is written by nothing here, or by a package that is missing.

    A folder has no ending, a number for one (v1.2), or a / after it.
    """
    suffix = "" if target.endswith("/") else Path(target).suffix
    if suffix[1:2].isalpha() and suffix not in EXPORTERS:
        near_first = sorted(EXPORTERS, key=lambda known: -difflib.SequenceMatcher(None, known, suffix.lower()).ratio())
        raise UserError(
            f"export: {target}: no {suffix} files are written here, but {', '.join(near_first)} or, under a name "
            "without ending, a folder for torch.export"
        )
    if suffix in CHECKS:
        CHECKS[suffix]("export")


def check_overrides(values: dict[str, Any]) -> None:
    """Raise UserError for keys of the data section that change no test image."""
    for key in (*data.TRAINING_ALONE, "val_fraction"):
        if key in values:
            raise UserError(f"data.{key}: read in training alone; it changes no test image")


def evaluate(settings: EvaluateSettings, source: str) -> None:
    """Measure the checkpoint; write evaluation.json, .html and, if asked for, sensitivity.csv and the integer model.

    source: what mistakes in settings.data are reported as mistakes of.
    """
    check_trusted = functools.partial(models.check_trusted, trust=settings.trust, checkpoint=settings.checkpoint)
    model, state, trained = rebuild(settings.checkpoint, check_trusted)
    check_possible(settings, trained, state["prepared"])
    if "name" not in settings.data:
        data.check_trusted(trained.data.name, settings.trust, checkpoint=settings.checkpoint)
    with blame(source):
        d = data.with_overrides(trained.data, settings.data)
    models.check_output(model.eval(), trained.model.name, len(state["classes"]), d.image_size, d.channels)
    folder = files.make_folder(Path(settings.output or Path(settings.checkpoint).parent), "output")
    target = prepare_target(Path(settings.export)) if settings.export else None
    if settings.engines or settings.sensitivity or not target:
        measure(settings, model, state, trained, d, folder)
    if target and quant.is_prepared(model):
        export(model, target, export_info(state, trained))


def measure(
    settings: EvaluateSettings,
    model: nn.Module,
    state: dict[str, Any],
    trained: TrainSettings,
    d: data.DataSettings,
    folder: Path,
) -> None:
    """Measure a model on the test images of a data section, and write the results into the folder."""
    dataset = datasets.load_test(d, download=is_ours(d, settings.data))
    data.check_classes(dataset.classes, state["classes"])
    if (notice := other_test_images(dataset, state, d, trained.data)) is not None:
        say(notice)
    make = datasets.batch_maker(d, *datasets.normalization(settings.data, state))
    test = make(dataset.test, data.evaluation_batch(d.image_size))
    engines = settings.engines or []
    measured = quant.measure(
        model.eval(), engines, test, trained.ends_in_float, d.image_size, d.channels, trained.quant.engine
    )
    say(f"{accuracy_table(measured.result)}\n\n{measured.in_float}")  # first: the disk may be full
    confused = confusion.tables(measured.predictions, test.seen, dataset.test, dataset.names)
    result = {"checkpoint": settings.checkpoint} | measured.result | confused
    files.write_json(folder / "evaluation.json", result)
    files.write_text(folder / "evaluation_layers.txt", measured.layers)
    say(f"{len(dataset.test):,} test images; evaluation.json and evaluation.html in {folder}")
    found, title = None, f"{trained.model.name} on {d.name}, {trained.quant.method}"
    if settings.sensitivity and quant.is_prepared(model):
        found = quant.sensitivity(model, test)
        say(f"\n{sensitivity_table.text(found)}\n\nsensitivity.csv and sensitivity.png in {folder}")
        sensitivity_table.write(found, title, folder)
    with html.if_possible(folder / "evaluation.html"):
        rows = ((state["training"] or {}).get("log") or {}).get("rows", [])
        here = trained.model_copy(update={"data": d})
        layers = run_report.Layers(measured.engine, measured.layer_records)
        contents = run_report.Contents(title, here, dataset, result, rows, layers, found)
        run_report.write(contents, folder / "evaluation.html")


def other_test_images(
    dataset: data.Dataset, state: dict[str, Any], here: data.DataSettings, trained: data.DataSettings
) -> str | None:
    """A line if the test images are not those that the run had, although the settings ask for the same.

    here: the section that the dataset was loaded by. trained: that of the run.
    """
    read = (state.get("inputs") or {}).get("data")
    if not isinstance(read, dict) or "test" not in read or other_images_are_asked_for(here, trained):
        return None
    found = differences({"test": read["test"]}, {"test": data.identity(dataset)["test"]})
    return f"data.root: not the test images of the run: {'; '.join(found[:3])}" if found else None


def other_images_are_asked_for(here: data.DataSettings, trained: data.DataSettings) -> bool:
    return bool(differences(trained.model_dump(mode="json"), here.model_dump(mode="json"), LOCATION))


def is_ours(d: data.DataSettings, given: dict[str, Any]) -> bool:
    """Whether the root of a dataset is the user's, to be written to: given by them, or the usual one.

    Else the checkpoint names it, which may be a stranger's.
    """
    return "root" in given or getattr(d, "root", data.ROOT) == data.ROOT


def check_possible(settings: EvaluateSettings, trained: TrainSettings, prepared: bool) -> None:
    """Raise UserError for what this checkpoint cannot give. prepared: whether it is of a quantized model."""
    for key in ("export", "sensitivity"):
        if getattr(settings, key) and not prepared:
            raise UserError(f"{key}: {settings.checkpoint} is a float model: nothing is quantized")
    if settings.sensitivity and quant.rescales(quant.resolve(trained.quant)):
        raise UserError(
            f"sensitivity: {trained.quant.method} trains weights on a scale of their own, which batch norm has "
            "learned: without its quantizers the model is no float model to compare with"
        )


def prepare_target(target: Path) -> Path:
    """The path to export to, after making its folder. Raises UserError if it cannot be written."""
    is_file = target.suffix in EXPORTERS
    if is_file and target.is_dir():
        raise UserError(f"export: {target} is a folder, but {target.suffix} is the suffix of a file")
    if target.suffix in quant.PROGRAMS:
        quant.check_beside(target)
    files.make_folder(target.parent if is_file else target, "export")
    return target


def export_info(state: dict, trained: TrainSettings) -> dict:
    """What a user of the exported model must know to feed it."""
    size = trained.data.image_size
    return {
        "model": trained.model.name,
        "weight_bits": trained.quant.weight_bits,
        "act_bits": trained.quant.act_bits,
        "image_size": size,
        "channels": trained.data.channels,
        "resize": size,
        "crop": "center",
        "interpolation": "bilinear",
        **data.stated(trained.data),
        "mean": state["mean"],
        "std": state["std"],
        "classes": data.readable(state["classes"]),
    }


def export(model: fx.GraphModule, target: Path, info: dict) -> None:
    """Write the integer model, with `info`, to a file of EXPORTERS or to a folder."""
    size, channels = info["image_size"], info["channels"]
    say(f"converting the model for {target}, and comparing what is written with the model")
    if target.suffix in EXPORTERS:
        EXPORTERS[target.suffix](model, target, size, info, channels)
        shape = ["N" if target.suffix in (".onnx", ".npz") else 1, channels, size, size]
        order = [0, 2, 3, 1] if target.suffix == ".tflite" else [0, 1, 2, 3]
        shown = ", ".join(str(shape[axis]) for axis in order)
        say(f"{target} ({target.stat().st_size / 1e6:.3f} MB): images [{shown}] -> logits")
        return
    quant.export(model, target, size, info, channels)
    megabytes = (target / "model.pt2").stat().st_size / 1e6
    say(f"{target}: model.pt2 ({megabytes:.2f} MB), integer_ops.py, model.json and example.py: python example.py IMAGE")
