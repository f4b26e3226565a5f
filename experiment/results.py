"""What a finished run leaves: the final checkpoint, summary.json, layers.txt, pictures, report.html, and a table."""

from typing import Any

import torch
from torch import Tensor, nn

import data
import models
import quant
from experiment import datasets
from experiment.report import confusion, html, plot, run_report
from experiment.report.accuracy_table import accuracy_table
from experiment.settings import TrainSettings
from utils import files, metrics
from utils.console import say
from utils.runs import checkpoint, tensor_file
from utils.runs.folder import BEST, LAST, PREVIOUS, SUMMARY
from utils.runs.log import RunLog
from utils.sections import FLOAT_BITS


def save_final(
    model: nn.Module, settings: TrainSettings, dataset: data.Dataset, log: RunLog, inputs: dict | None
) -> None:
    """Save the finished model over best.pt, and over last.pt if the model changed after the last epoch.

    It did if it was quantized, averaged, or its batch norm statistics were measured again after training.
    """
    q, epochs = quant.resolve(settings.quant), settings.run.epochs
    training = {"log": log.state()}
    final = checkpoint.pack(model, settings.model_dump(), dataset, quant.is_prepared(model), epochs, training, inputs)
    changed = settings.ends_in_float or (log.best is None and (settings.optim.average or q.bn_reestimation_images))
    if changed:
        tensor_file.save(log.folder / LAST, final)
    if log.best is not None:
        tensor_file.save(log.folder / BEST, final)


def measure(
    model: nn.Module,
    settings: TrainSettings,
    dataset: data.Dataset,
    test_batches: Any,
    log: RunLog,
    size: dict[str, float],
) -> None:
    """Convert the model to each engine of run.engines, compare them on the test images, and write the results.

    test_batches: of the dataset's test images (data/batches.py). size: {"params", "macs"} of the float model.
    """
    folder, d = log.folder, settings.data
    measured = quant.measure(
        model, settings.engines, test_batches, settings.ends_in_float, d.image_size, d.channels, settings.quant.engine
    )
    title = f"{settings.model.name} on {settings.data.name}, {settings.quant.method}"
    say(f"\n{accuracy_table(measured.result)}\n\n{measured.in_float}")  # first: the disk may be full
    notice = no_better_than_guessing(measured.result["accuracy"], dataset.test.labels)
    if notice:
        say(notice)
    with files.if_possible(folder / "layers.txt"):
        files.write_text(folder / "layers.txt", measured.layers)
    with files.if_possible(folder / "curves.png"):
        plot.curves(log.rows, title, folder / "curves.png")
    confused = confusion.tables(measured.predictions, test_batches.seen, dataset.test, dataset.names)
    summary = summarize(settings, quant.is_prepared(model), log, size) | measured.result | confused
    if summary["engine"] == quant.AUTO:
        summary["engine"] = next(iter(measured.result["agreement"]), quant.AUTO)
    with html.if_possible(folder / "report.html"):
        layers = run_report.Layers(measured.engine, measured.layer_records)
        contents = run_report.Contents(title, settings, dataset, summary, log.rows, layers)
        run_report.write(contents, folder / "report.html")
    files.write_json(folder / SUMMARY, summary)  # written last: it marks the run as finished
    (folder / PREVIOUS).unlink(missing_ok=True)


def summarize(settings: TrainSettings, prepared: bool, log: RunLog, size: dict[str, float]) -> dict:
    """The part of summary.json that describes the run. prepared: whether the model is quantized."""
    q = quant.resolve(settings.quant)
    return {
        "model": settings.model.name,
        "dataset": settings.data.name,
        "method": q.method,
        "weight_bits": q.weight_bits if prepared else FLOAT_BITS,
        "act_bits": q.act_bits if prepared else FLOAT_BITS,
        "engine": q.engine,
        **size,
        "epochs": settings.run.epochs,
        "seconds": log.run_seconds(),
        "checkpoint": LAST if log.best is None or settings.ends_in_float else BEST,
    }


def no_better_than_guessing(accuracy: dict[str, dict[str, float]], labels: Tensor) -> str | None:
    """A line if no model's top-1 is above the share of the most frequent class of the test images."""
    share = 100 * int(labels.bincount().max()) / len(labels)
    if max(score["top1"] for score in accuracy.values()) > share:
        return None
    return (
        f"no better than always naming the most frequent class ({share:.1f} %): more images, more epochs "
        "(run.epochs), another rate (optim.lr), or trained weights to start from (model.weights)"
    )


def float_score(runs: list[TrainSettings]) -> dict[str, float] | None:
    """Test accuracy of the float weights from which all these runs start; None if they have none in common."""
    d, asked = runs[0].data, runs[0].model
    same = all(run.data == d and run.model == asked for run in runs)
    if (
        not same
        or not asked.weights
        or any(quant.ends_in_float(quant.resolve(run.quant), 1) and run.run.epochs for run in runs)
    ):
        return None
    dataset = datasets.load(d)
    model = models.build(asked.name, len(dataset.classes), d.image_size, asked.options, d.channels)
    if checkpoint.load_weights(model, asked.weights, allow_new_head=all(run.run.epochs for run in runs)).new_head:
        return None  # trained on other classes
    make = datasets.batch_maker(d, dataset.mean, dataset.std)
    test = make(dataset.test, data.evaluation_batch(d.image_size))
    return metrics.score(model.eval(), test, torch.device("cpu")).summary()
