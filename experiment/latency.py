"""What latency.py does: time float and integer models side by side on this CPU."""

import copy
import functools
import gc
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

import models
import quant
from experiment import cli, latency_profile
from experiment.check import check_engines
from experiment.rebuild import rebuild
from experiment.report import profile_report
from experiment.report.latency_table import report
from experiment.run_results import checkpoint_of, summary_of
from experiment.settings import LatencySettings, ModelSettings
from utils import files, timing
from utils.complexity import complexity
from utils.config import blame, validate
from utils.console import say
from utils.environment import environment
from utils.errors import UserError
from utils.names import printable
from utils.runs import checkpoint, tensor_file

TRIAL_IMAGES = 8
"""Random images on which an engine's logits are compared with the simulation's."""
Entry = str | dict[str, Any]
"""An element of `models` in the settings: a model's name, a name with options, or the path of a run or checkpoint."""


@dataclass(frozen=True)
class Subject:
    """A model to time: in float, and prepared for integers. label: its name in the table."""

    label: str
    float_model: nn.Module
    prepared: fx.GraphModule
    image_size: int
    channels: int = 3


@dataclass(frozen=True)
class Candidate:
    """An integer model on an engine. bit_equal: percent of random images whose logits are the simulation's, bit for
    bit."""

    model: quant.IntegerModel
    bit_equal: float


def main(arguments: list[str], description: str | None = __doc__) -> None:
    """Run latency.py with this command line."""
    cli.main(arguments, description, "setting/latency.json", LatencySettings, plan)


def plan(settings: LatencySettings, setting_file: str) -> cli.Job:
    """The timing that the settings describe, checked. Raises UserError."""
    check_engines(settings.engines, "engines", auto=False)
    for entry in settings.models:
        check_entry(entry, settings.image_size)
    return cli.Job(settings, functools.partial(measure_all, settings))


def check_entry(entry: Entry, image_size: int) -> None:
    """Raise UserError, before any model is timed, for an entry that is neither a run nor a model."""
    if is_run(entry):
        tensor_file.check_exists(checkpoint_of(entry))
        return
    asked = model_settings(entry)
    if asked.weights:
        raise UserError("models: a model by its name has random weights; a run has its own, and is named by its folder")
    with blame("models"):
        models.check(asked.name, asked.options, image_size)
    if models.is_external(asked.name):
        quant.trace(models.build(asked.name, None, image_size, asked.options), trains=False)


def model_settings(entry: Entry) -> ModelSettings:
    return validate(ModelSettings, {"name": entry} if isinstance(entry, str) else entry, "models")


def is_run(entry: Entry) -> TypeGuard[str]:
    """Whether an entry names a checkpoint or the folder of a run."""
    return isinstance(entry, str) and (entry.endswith(".pt") or Path(entry).is_dir())


def measure_all(settings: LatencySettings) -> None:
    """Time every model of the settings and write the table and pictures into their folder."""
    folder = files.make_folder(Path(settings.dir), "dir")
    usual = torch.get_num_threads()
    sizes = list(itertools.product(counts(settings.threads or usual), counts(settings.batch_size)))
    calls = (settings.warmup + settings.repeats) * len(settings.models) * (3 + len(settings.engines)) * len(sizes)
    rows: list[dict] = []
    profiles: list[profile_report.Profiled] = []
    with tqdm(total=calls, unit="run", leave=False, disable=None) as bar:
        for entry in settings.models:
            subject = build(entry, settings.image_size, settings.num_classes, settings.trust)
            bar.set_description(printable(subject.label))
            gc.collect()  # graphs are reference cycles: the previous model's still hold its weights
            integer = on_engines(subject, settings.engines)
            for threads, batch_size in sizes:
                torch.set_num_threads(threads)
                rows += measure(
                    subject,
                    integer,
                    batch_size,
                    top1_of(entry),
                    warmup=settings.warmup,
                    repeats=settings.repeats,
                    progress=bar.update,
                )
                if settings.profile:
                    profiles += profiled(subject, integer, batch_size, settings.repeats)
            torch.set_num_threads(usual)  # a model's ranges are found with the same sums, whatever is timed
    report(rows, settings.repeats, environment(), folder)
    profile_report.report(profiles, folder)


def counts(asked: int | list[int]) -> list[int]:
    return asked if isinstance(asked, list) else [asked]


def top1_of(entry: Entry) -> dict[str, float]:
    """Top-1 accuracy of a finished run by "float" and by engine, from its summary.json; empty if it is not known."""
    if not is_run(entry):
        return {}
    timed = Path(checkpoint_of(entry))
    summary = summary_of(timed.parent)
    if timed.name != summary["checkpoint"]:
        return {}
    return {name: score["top1"] for name, score in summary["accuracy"].items()}


def build(entry: Entry, image_size: int, num_classes: int, trust: bool | str) -> Subject:
    """The model of an entry.

    A run brings its weights, method and image size. A model by name has random weights and 8 bits, with batch norm
    statistics and ranges that fit random images.
    """
    if is_run(entry):
        path = checkpoint_of(entry)
        prepared, state, trained = rebuild(path, functools.partial(models.check_trusted, trust=trust, checkpoint=path))
        image_size, channels = trained.data.image_size, trained.data.channels
        plain = models.build(trained.model.name, len(state["classes"]), image_size, trained.model.options, channels)
        checkpoint.load_weights(plain, path)
        label = trained.run.name or entry
    else:
        asked, channels = model_settings(entry), 3
        torch.manual_seed(0)
        prepared = plain = models.build(asked.name, num_classes, image_size, asked.options)
        label = " ".join([asked.name, *(f"{key}={value}" for key, value in asked.options.items())])
    integer = prepared if quant.is_prepared(prepared) else calibrated_on_noise(plain, image_size, channels)
    return Subject(label, plain.eval(), integer.eval(), image_size, channels)


def calibrated_on_noise(plain: nn.Module, image_size: int, channels: int = 3) -> fx.GraphModule:
    """A float model quantized to 8 bits. Also gives `plain` itself the batch norm statistics of random images."""
    noise = torch.randn(8, channels, image_size, image_size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        plain.train()(noise)
    prepared = quant.prepare(copy.deepcopy(plain).eval(), quant.resolve(quant.parse(method="ptq")))
    quant.calibrate(prepared, [noise])
    return prepared


def on_engines(subject: Subject, engines: list[str]) -> dict[str, Candidate]:
    """The integer models by engine. An engine that cannot run the model is left out, in a line."""
    trial = torch.randn(TRIAL_IMAGES, subject.channels, subject.image_size, subject.image_size)
    simulated, found = call(subject.prepared, trial)(), {}
    for name in engines:
        try:
            model = quant.convert(subject.prepared, name)
            found[name] = Candidate(model, 100 * float((call(model, trial)() == simulated).all(1).float().mean()))
        except quant.EngineFailed as error:
            say(str(error))
    return found


def measure(
    subject: Subject,
    integer: dict[str, Candidate],
    batch_size: int,
    top1: dict[str, float],
    warmup: int,
    repeats: int,
    progress: Callable[[int], Any],
) -> list[dict]:
    """A row for each engine: milliseconds of the float model eager, in its fastest compiled form, and in integers.

    Calls of all of them are interleaved. progress(n): called after n calls.
    """
    plain, size, channels = subject.float_model, subject.image_size, subject.channels
    images = torch.randn(batch_size, channels, size, size)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    forms = quant.float_baseline(plain).torchscript_variants(channels_last)
    integer = dict(integer)
    calls = {"eager": call(plain, images)} | {form: call(run, channels_last) for form, run in forms.items()}
    for name, candidate in list(integer.items()):
        engine_images = images.contiguous(memory_format=candidate.model.engine.layout)
        try:
            calls[name] = call(candidate.model.compile_for(engine_images), engine_images)
        except quant.EngineFailed as error:
            say(str(error))
            del integer[name]
    times = timing.time_interleaved(calls, warmup, repeats, progress)
    best = min(forms, key=lambda form: times[form].median)
    common = float_facts(plain, size, batch_size, channels)
    share = quant.integer_share(subject.prepared, size, channels).percent
    return [
        {"model": subject.label, "engine": name}
        | common
        | {"int8_mb": tensor_file.megabytes(candidate.model.stored()), "integer_macs_percent": share}
        | with_percentiles("as_built_ms", times["eager"])
        | with_percentiles("float_ms", times[best])
        | with_percentiles("int8_ms", times[name])
        | {"float_images_per_s": 1000 * batch_size / times[best].median}
        | {"int8_images_per_s": 1000 * batch_size / times[name].median}
        | {"float_form": best, "speedup": times[best].median / times[name].median}
        | {"speedup_as_built": times["eager"].median / times[name].median}
        | {"bit_equal_percent": candidate.bit_equal}
        | {"float_top1": top1.get("float"), "int8_top1": top1.get(name)}
        for name, candidate in integer.items()
    ]


def profiled(
    subject: Subject, integer: dict[str, Candidate], batch_size: int, repeats: int
) -> list[profile_report.Profiled]:
    """The operators of the integer models, each timed by itself."""
    images = torch.randn(batch_size, subject.channels, subject.image_size, subject.image_size)
    by_engine = {name: candidate.model for name, candidate in integer.items()}
    return latency_profile.take(subject.label, subject.prepared, subject.float_model, by_engine, images, repeats)


def float_facts(plain: nn.Module, image_size: int, batch_size: int, channels: int = 3) -> dict[str, Any]:
    """The columns that describe the float model."""
    params, macs = complexity(plain, image_size, channels=channels)
    try:
        _, macs_32 = complexity(plain, 32, (nn.Conv2d,), channels)
    except (RuntimeError, ValueError, AssertionError):
        macs_32 = None  # the model does not take images that small
    return {
        "image_size": image_size,
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "params": params,
        "macs": macs,
        "flops": 2 * macs,
        "conv_flops_32": macs_32 and 2 * macs_32,
        "float_mb": tensor_file.megabytes(plain.state_dict()),
    }


def call(model: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], Tensor]:
    """A function without arguments that runs the model on these images."""

    def run_once() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return run_once


def with_percentiles(key: str, spread: timing.Spread) -> dict[str, float]:
    """Columns key, key_p10 and key_p90."""
    return {key: spread.median, f"{key}_p10": spread.p10, f"{key}_p90": spread.p90}
