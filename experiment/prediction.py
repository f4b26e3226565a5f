"""What a model says of single pictures: `evaluate.py images=photo.jpg`, or a folder of them."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import data
from experiment import classifier, datasets
from experiment.classifier import Classifier
from experiment.settings import EvaluateSettings
from utils import files
from utils.console import say, tracked
from utils.errors import UserError
from utils.names import printable
from utils.table import text_table

TOP = 5
PICTURE_CHANNELS = (1, 3, 4)
"""Of grey, RGB and RGBA, which picture files can be read as."""
SHOWN = 40
"""Pictures of a folder that are shown on the screen; the table in the file has all."""


def predict(settings: EvaluateSettings) -> None:
    """Print the likeliest classes of each picture, and write them to predictions.csv."""
    pictures = find(Path(settings.images or ""))
    asked = classifier.load(settings)
    if asked.section.channels not in PICTURE_CHANNELS:
        raise UserError(f"images: the model takes {asked.section.channels} channels, and pictures have 1, 3 or 4")
    folder = files.make_folder(Path(settings.output or Path(settings.checkpoint).parent), "output")
    rows = [row for batch in answers(asked, pictures) for row in batch]
    common = f"{Path(settings.images or '')}/"
    say(shown([row | {"image": row["image"].removeprefix(common)} for row in rows], asked.engine))
    files.write_csv(folder / "predictions.csv", rows)
    say(f"{len(rows):,} of {len(pictures):,} pictures; predictions.csv in {folder}")


def check(settings: EvaluateSettings) -> None:
    """Raise UserError for keys that have no effect where pictures are asked for."""
    for key in ("export", "sensitivity"):
        if getattr(settings, key):
            raise UserError(f"{key}: with `images`, nothing is exported or measured; leave one of them out")


def find(path: Path) -> list[Path]:
    """The picture, or all in the folder and in folders in it. Raises UserError if there are none."""
    found = [path] if path.is_file() else data.find_images(path).images if path.is_dir() else []
    if not found:
        raise UserError(f"images: no {'pictures in' if path.is_dir() else 'picture'} {path}")
    return found


@torch.inference_mode()
def answers(asked: Classifier, pictures: list[Path]) -> Iterator[list[dict]]:
    """Rows {"image", "class 1", "percent 1", ...} of each batch of pictures. Of several, those that cannot be read are
    named and left out."""
    d = asked.section
    numbered = data.Files(
        pictures, torch.arange(len(pictures)), data.preprocessing_of(d), 0, "skip" if len(pictures) > 1 else "fail"
    )
    make = datasets.batch_maker(d, asked.mean, asked.std)
    batches = make(numbered, data.evaluation_batch(d.image_size))
    for images, numbers in tracked(batches, len(batches), "predicting", "batches"):
        yield rows_of(asked.run(images), [pictures[i] for i in numbers.tolist()], asked.classes)


def rows_of(logits: Tensor, pictures: list[Path], classes: list[str]) -> list[dict]:
    percent, best = (100 * logits.float().softmax(1)).topk(min(TOP, len(classes)), 1)
    return [
        {"image": printable(str(path))}
        | {
            key: value
            for place, (index, share) in enumerate(zip(indexes, shares, strict=True), 1)
            for key, value in ((f"class {place}", classes[index]), (f"percent {place}", round(share, 2)))
        }
        for path, indexes, shares in zip(pictures, best.tolist(), percent.tolist(), strict=True)
    ]


def shown(rows: list[dict], engine: str) -> str:
    """Of one picture a class a line; of several a picture a line, with its two likeliest classes."""
    if len(rows) == 1:
        [row] = rows
        places = range(1, len(row) // 2 + 1)
        lines = [[row[f"class {place}"], f"{row[f'percent {place}']:.2f}"] for place in places]
        return f"{row['image']}, by {engine}\n\n{text_table(['class', '%'], lines)}\n"
    shown_places = [place for place in (1, 2) if any(f"class {place}" in row for row in rows)]
    header = ["image", *(title for place in shown_places for title in ("class" if place == 1 else "or", "%"))]
    lines = [
        [row["image"], *(text for i in shown_places for text in (row[f"class {i}"], f"{row[f'percent {i}']:.2f}"))]
        for row in rows[:SHOWN]
    ]
    more = f"and {len(rows) - SHOWN:,} more\n" if len(rows) > SHOWN else ""
    return f"by {engine}\n\n{text_table(header, lines)}\n{more}"
