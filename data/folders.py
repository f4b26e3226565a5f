"""Images in folders, one folder a class. data/sources.py says what a loader is."""

import csv
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy
import torch
from PIL import Image
from pydantic import Field

from data.images import IMAGENET_MEAN, IMAGENET_STD, WORKERS, Dataset, Files, Images, first, statistics
from data.sources import ROOT
from utils.console import say, tracked
from utils.errors import UserError
from utils.image_input import resize_and_crop, upright_rgb
from utils.sections import PathText, Section

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff"}
MEMORY_BYTES = 2**31


class FileOptions(Section):
    root: PathText = ROOT
    """Folder of the files. imagefolder: the one that holds train/ and val/ or test/."""
    workers: int = Field(WORKERS, ge=0)
    """Threads (images kept in memory) or processes (large images) that decode image files."""
    on_error: Literal["fail", "skip"] = "fail"
    """An image file that cannot be read: it is named, and the run ends, or continues without it."""


class FolderOptions(FileOptions):
    cache: Literal["auto", "always", "never"] = "auto"
    """Decode images once, to image_size, and keep them in memory; or in each epoch again, with random resized crops of
    the files as they are. auto: kept where all fit in 2 GB."""


def imagefolder(
    image_size: int,
    limit: int | None,
    train: bool = True,
    root: str = ROOT,
    workers: int = WORKERS,
    on_error: str = "fail",
    cache: str = "auto",
) -> Dataset:
    """One's own images: root/train/<class>/* and root/test/<class>/* (or val/).

    Kept in memory (cache auto: when all fit in 2 GB at image_size), or decoded a batch at a time.
    """
    training, held_out = Path(root) / "train", _held_out(Path(root))
    classes = class_names(training if train or training.is_dir() else held_out)
    found = [_files(part, classes, part == training) for part in (training, held_out) if part.is_dir()]
    every = [replace(part, workers=workers, on_error=on_error) for part in found]
    fits = sum(map(len, every)) * 3 * image_size**2 <= MEMORY_BYTES  # decided alike whatever part or limit is asked for
    kept = fits if cache == "auto" else cache == "always"
    parts = [first(part, limit) for part in (every if train else every[-1:])]
    if kept:
        decoded = [_decode(part, image_size) for part in parts]
        mean, std = statistics(decoded[0].pixels)
        return Dataset(decoded[0] if train else None, decoded[-1], classes, mean, std, flip=True)
    return Dataset(parts[0] if train else None, parts[-1], classes, IMAGENET_MEAN, IMAGENET_STD, flip=True)


def looks_like_imagefolder(root: str) -> bool:
    """Whether a folder is laid out as imagefolder reads it: train/ with folders in it, and test/ or val/."""
    training, *held_out = (Path(root).expanduser() / part for part in ("train", "test", "val"))
    return any(part.is_dir() for part in held_out) and training.is_dir() and any(map(Path.is_dir, training.iterdir()))


def imagenet(
    image_size: int,
    limit: int | None,
    train: bool = True,
    root: str = ROOT,
    workers: int = WORKERS,
    on_error: str = "fail",
) -> Dataset:
    """ImageNet-1K: root/train/<wnid>/* and root/val/<wnid>/*, or the ILSVRC2015 archive as it unpacks.

    That has root/Data/CLS-LOC/train/<wnid>/* and all validation images in root/Data/CLS-LOC/val, with their classes in
    LOC_val_solution.csv (Kaggle's) or in Annotations/CLS-LOC/val/*.xml. Class names are those of LOC_synset_mapping.txt
    where it is there, else the wnids.
    """
    top = Path(root)
    images = top / "Data" / "CLS-LOC" if (top / "Data" / "CLS-LOC").is_dir() else top
    training, held_out = images / "train", images / "val"
    if not held_out.is_dir():
        raise UserError(f"data.root: no folder {held_out} beside train/")
    in_folders = any(path.is_dir() for path in held_out.iterdir())
    wnids = class_names(training if train or training.is_dir() or not in_folders else held_out)
    test = _files(held_out, wnids) if in_folders else _labelled(held_out, _solutions(top), wnids)
    every = [*([_files(training, wnids, True)] if train else []), test]
    parts = [first(replace(part, workers=workers, on_error=on_error), limit) for part in every]
    return Dataset(parts[0] if train else None, parts[-1], _named(top, wnids), IMAGENET_MEAN, IMAGENET_STD, flip=True)


def open_image(path: Path) -> Image.Image:
    """An image file as RGB, as people see it."""
    try:
        with Image.open(path) as image:
            return upright_rgb(image)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, DecompressionBombError, ... by its format
        raise UserError(f"{path}: not a readable image ({error})") from None


def class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"data.root: no folder {folder}; expected {folder}/<class>/<image>")
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise UserError(f"data.root: {folder} holds no class folders; expected {folder}/<class>/<image>")
    return classes


def _held_out(root: Path) -> Path:
    if not root.is_dir():
        raise UserError(f"data.root: no folder {root}; expected {root}/train/<class>/<image> and {root}/test/ or val/")
    for name in ("test", "val"):
        if (root / name).is_dir():
            return root / name
    raise UserError(f"data.root: {root} has no test/ and no val/ folder beside train/")


def _files(folder: Path, classes: list[str], of_all: bool = False) -> Files:
    """The images of a part; of_all: of each class there have to be some."""
    unknown = sorted({p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."} - set(classes))
    if unknown:
        raise UserError(f"data.root: {folder} has classes that train/ has not: {', '.join(unknown[:5])}")
    found = [
        (path, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in SUFFIXES and path.name[0] != "."
    ]
    empty = sorted({*range(len(classes))} - {label for _, label in found}) if of_all or not found else []
    if empty:
        where = folder / classes[empty[0]] if found else folder
        raise UserError(f"data.root: no images under {where} (looked for {', '.join(sorted(SUFFIXES))})")
    return Files([path for path, _ in found], torch.tensor([label for _, label in found]))


def _labelled(folder: Path, solutions: dict[str, str], wnids: list[str]) -> Files:
    """Images of one flat folder, with the classes that `solutions` gives to their names."""
    paths, number = sorted(folder.glob("*.JPEG")), {wnid: i for i, wnid in enumerate(wnids)}
    missing = next((path for path in paths if solutions.get(path.stem) not in number), None)
    if not paths or missing:
        raise UserError(f"data.root: {missing or folder}: " + ("its class is not known" if missing else "no *.JPEG"))
    return Files(paths, torch.tensor([number[solutions[path.stem]] for path in paths]))


def _solutions(root: Path) -> dict[str, str]:
    """Wnid by validation image, from Kaggle's table or from the annotations."""
    table, annotations = root / "LOC_val_solution.csv", root / "Annotations" / "CLS-LOC" / "val"
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    if annotations.is_dir():
        return dict(_annotated(annotations))
    raise UserError(f"data.root: the classes of the validation images are in neither {table} nor {annotations}")


def _annotated(folder: Path) -> Iterator[tuple[str, str]]:
    for path in folder.glob("*.xml"):
        name = re.search(r"<name>(n\d+)</name>", path.read_text(encoding="utf-8"))
        if name:
            yield path.stem, name[1]


def _named(root: Path, wnids: list[str]) -> list[str]:
    mapping = root / "LOC_synset_mapping.txt"
    if not mapping.is_file():
        return wnids
    lines = (line.partition(" ") for line in mapping.read_text(encoding="utf-8").splitlines())
    names = {wnid: name for wnid, _, name in lines}
    return [names.get(wnid, wnid) for wnid in wnids]


def _decode(files: Files, image_size: int) -> Images:
    """All images in memory."""
    pixels = numpy.empty((len(files), image_size, image_size, 3), dtype=numpy.uint8)

    def fill(i: int) -> str | None:
        try:
            pixels[i] = numpy.asarray(resize_and_crop(open_image(files.paths[i]), image_size))
        except UserError as error:
            if files.on_error == "fail":
                raise
            return str(error)
        return None

    with ThreadPoolExecutor(max(files.workers, 1)) as pool:
        done = pool.map(fill, range(len(files)))
        unreadable = {i: line for i, line in enumerate(tracked(done, len(files), "decoding", "images")) if line}
    for line in unreadable.values():
        say(f"left out: {line}")
    every = Images(torch.from_numpy(pixels), files.labels, files)
    if len(unreadable) == len(files):
        raise UserError(f"data.root: none of {len(files)} images can be read")
    return every.take(torch.tensor([i for i in range(len(files)) if i not in unreadable])) if unreadable else every
