"""Measures an exported model, as evaluate.py does for a file that is no checkpoint."""

from pathlib import Path

import torch

import data
from experiment import classifier, datasets, exported
from experiment.report.accuracy_table import accuracy_table
from experiment.settings import EvaluateSettings
from utils import files, metrics
from utils.config import blame
from utils.console import say, tracked
from utils.errors import UserError


def evaluate(settings: EvaluateSettings, source: str) -> None:
    """Measure an exported model on the images that the settings name; write evaluation.json.

    source: what mistakes in settings.data are reported as mistakes of.
    """
    exported.check_exists(settings.checkpoint)
    if not settings.data:
        raise UserError(f"data: {settings.checkpoint} does not say on which images to measure it: data.root=..., say")
    with blame(source):
        asked = classifier.load(settings)
    d = asked.section
    dataset = datasets.load_test(d)
    data.check_classes(dataset.classes, asked.classes)
    batches = datasets.batch_maker(d, asked.mean, asked.std)(dataset.test, data.evaluation_batch(d.image_size))
    shown = tracked(batches, len(batches), "measuring", "batches")
    score = metrics.score(asked.run, shown, torch.device("cpu")).summary()
    result = {"accuracy": {asked.engine: score}, "size_mb": {asked.engine: megabytes(Path(settings.checkpoint))}}
    say(accuracy_table(result))
    folder = files.make_folder(Path(settings.output or Path(settings.checkpoint).parent), "output")
    files.write_json(folder / "evaluation.json", {"checkpoint": settings.checkpoint} | result)
    say(f"{len(dataset.test):,} test images; evaluation.json in {folder}")


def megabytes(path: Path) -> float:
    """Decimal MB of a file, or of the files in a folder."""
    paths = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in paths) / 1e6
