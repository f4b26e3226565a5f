"""Time float and integer models side by side on this CPU, as one JSON setting says.

python latency.py                                                setting/latency.json: nine nets at 224 x 224
python latency.py 'engines=["x86","onnxruntime","openvino"]'     with other people's engines beside ours
python latency.py 'models=["torchvision:resnet50"]' threads=1
python latency.py 'models=["runs/train"]' 'engines=["fbgemm","x86","onednn"]'
"""

import copy
import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import models
import quant
from experiment.report.latency_table import report
from setting.names import TABLES
from utils import config, files, memory, timing
from utils.complexity import complexity
from utils.environment import environment
from utils.errors import UserError, run
from utils.runs import checkpoint, tensor_file
from utils.runs import folder as run_folder


def main(arguments: list[str]) -> None:
    options = config.parser(__doc__, "setting/latency.json", TABLES).parse_intermixed_args(arguments)
    if options.list:
        print("\n".join(TABLES[options.list]))
        return
    settings = config.load(config.LatencySettings, options.config, options.overrides)
    with config.blame(options.config):
        for name in settings.engines:
            quant.engine(name, "engines")
        for entry in settings.models:
            check(entry, settings.image_size)
    if options.print_config:
        print(settings.model_dump_json(indent=2))
        return
    latency(settings)


def check(entry: str | dict[str, Any], image_size: int) -> None:
    """Refuse a model that is neither a run nor a name, before anything is built."""
    if isinstance(entry, str) and is_run(entry):
        tensor_file.check_exists(checkpoint_of(entry))
        return
    asked = model_settings(entry)
    if asked.weights:
        raise UserError("models: a net by its name has random weights; a run has its own, and is named by its folder")
    models.check(asked.name, asked.options, image_size)
    if models.is_external(asked.name):
        quant.trace(models.build(asked.name, None, image_size, asked.options))


def model_settings(entry: str | dict[str, Any]) -> config.ModelSettings:
    return config.check(config.ModelSettings, {"name": entry} if isinstance(entry, str) else entry, "models")


def is_run(entry: str) -> bool:
    return entry.endswith(".pt") or Path(entry).is_dir()


def checkpoint_of(entry: str) -> str:
    """The file itself, or of a run's folder that which its summary.json was measured on."""
    return entry if entry.endswith(".pt") else str(Path(entry) / summary_of(Path(entry))["checkpoint"])


def summary_of(folder: Path) -> dict[str, Any]:
    """summary.json of a run; of one that is not finished, or older than its key `checkpoint`, what it would be."""
    found = run_folder.summary(folder) if (folder / run_folder.SUMMARY).is_file() else {}
    return {"checkpoint": "last.pt", "accuracy": {}} | found


def latency(settings: config.LatencySettings) -> None:
    folder = files.make_folder(Path(settings.dir), "dir")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    calls = (settings.warmup + settings.repeats) * len(settings.models) * (3 + len(settings.engines))
    rows: list[dict] = []
    with tqdm(total=calls, unit="run", leave=False, disable=None) as bar:
        for entry in settings.models:
            label, plain, prepared, image_size = build(entry, settings.image_size, settings.num_classes, settings.trust)
            bar.set_description(label)
            gc.collect()  # graphs are cycles: those of the model before still hold its weights
            rows += measure(label, plain, prepared, image_size, accuracy(entry), settings, bar.update)
    report(rows, settings.repeats, environment(), folder)


def accuracy(entry: str | dict[str, Any]) -> dict[str, float]:
    """Top-1 of a run by what was measured ("float" or an engine), as its summary.json says; else nothing."""
    if not (isinstance(entry, str) and is_run(entry)):
        return {}
    checked = Path(checkpoint_of(entry))
    summary = summary_of(checked.parent)
    if checked.name != summary["checkpoint"]:
        return {}
    return {name: score["top1"] for name, score in summary["accuracy"].items()}


def build(
    entry: str | dict[str, Any], image_size: int, num_classes: int, trust: bool
) -> tuple[str, nn.Module, nn.Module, int]:
    """(label, float model, prepared model, image size). A run brings its weights, method and image size; a name gets
    random weights and 8 bits, with batch norms and ranges that fit noise."""
    eight_bits = quant.resolve(config.QuantSettings(method="ptq"))
    if isinstance(entry, str) and is_run(entry):
        path = checkpoint_of(entry)
        check_trusted = functools.partial(models.check_trusted, trust=trust)
        prepared, state, trained = checkpoint.rebuild(path, models.build, quant.prepare, check_trusted)
        image_size = trained.data.image_size
        plain = models.build(trained.model.name, len(state["classes"]), image_size, trained.model.options)
        checkpoint.load_weights(plain, path)
        label = trained.run.name or entry
    else:
        asked = model_settings(entry)
        torch.manual_seed(0)
        prepared = plain = models.build(asked.name, num_classes, image_size, asked.options)
        label = " ".join([asked.name, *(f"{key}={value}" for key, value in asked.options.items())])
    if not quant.is_prepared(prepared):
        noise = torch.randn(8, 3, image_size, image_size).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            plain.train()(noise)
        prepared = quant.prepare(copy.deepcopy(plain).eval(), eight_bits)
        quant.calibrate(prepared, [noise])
    return label, plain.eval(), prepared.eval(), image_size


def measure(
    label: str,
    plain: nn.Module,
    prepared: nn.Module,
    image_size: int,
    top1: dict[str, float],
    settings: config.LatencySettings,
    progress: Callable[[int], Any],
) -> list[dict]:
    """A row for each engine: the net in float as it is built, in float at its best, and in integers, by turns."""
    images = torch.randn(settings.batch_size, 3, image_size, image_size)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    integer = {name: quant.convert(prepared, name) for name in settings.engines}
    forms = quant.fold(plain).forms(channels_last)
    calls = {"as built": call(plain, images)} | {form: call(run, channels_last) for form, run in forms.items()}
    for name, twin in integer.items():
        given = images.contiguous(memory_format=twin.engine.layout)
        calls[name] = call(twin.frozen(given), given)
    times = timing.take_turns(calls, settings.warmup, settings.repeats, progress)
    best = min(forms, key=lambda form: times[form].median)
    head = facts(plain, image_size, settings.batch_size)
    return [
        {"model": label, "engine": name}
        | head
        | {"int8_mb": tensor_file.megabytes(twin.stored())}
        | named("as_built_ms", times["as built"])
        | named("float_ms", times[best])
        | named("int8_ms", times[name])
        | {"float_form": best, "speedup": times[best].median / times[name].median}
        | {"speedup_as_built": times["as built"].median / times[name].median}
        | {"float_top1": top1.get("float"), "int8_top1": top1.get(name)}
        for name, twin in integer.items()
    ]


def facts(plain: nn.Module, image_size: int, batch_size: int) -> dict[str, Any]:
    """What a row says of the float net."""
    params, macs = complexity(plain, image_size)
    try:
        _, macs_32 = complexity(plain, 32, (nn.Conv2d,))
    except (RuntimeError, ValueError, AssertionError):
        macs_32 = None  # not a net for such small images
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


def call(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    def run_once() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return run_once


def named(key: str, spread: timing.Spread) -> dict[str, float]:
    return {key: spread.median, f"{key}_p10": spread.p10, f"{key}_p90": spread.p90}


if __name__ == "__main__":
    memory.keep()
    run(main)
