"""Images in folders, one folder a class. data/sources.py says what a loader is."""

import csv
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy
import torch
from pydantic import Field

from data.decoding import Preprocessing, normalization, preprocessing, square
from data.image_files import (
    by_name,
    find,
    is_folder,
    is_named_as_image,
    leftovers,
    trusted_suffixes,
)
from data.images import WORKERS, Dataset, Files, Images, first
from data.sources import ROOT
from utils.console import say, tracked
from utils.errors import UserError, nearest
from utils.names import printable
from utils.sections import PathText, Section

MEMORY_BYTES = 2**31
PARTS = ("train", "val", "test")
"""Folders of images by their use."""
Labelled = tuple[list[Path], torch.Tensor]
"""The images of a part and their labels."""


class FileOptions(Section):
    channels: Literal[1, 3, 4] = 3
    """Channels of an image: 3, RGB; 1, grey; 4, RGBA."""
    resize: int | None = Field(None, ge=8, le=4096)
    """To what the shorter side of an image is resized, before image_size is cut out of its middle. null: as for
    model.weights; else 8/7 of image_size above 64 pixels, and image_size up to that, and where images are
    squashed."""
    crop: Literal["center", "squash"] | None = None
    """What is resized: the shorter side, so that the ends of the longer one are cut off; or both, so that all of it is
    seen, squashed. null: as for model.weights, else center."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    """How images are resized, always with antialiasing. null: as for model.weights, else bilinear."""
    layout: ClassVar[str] = "{0}/train/<class>/<image> and {0}/val/"
    root: PathText = ROOT
    """Folder of the files. imagefolder: the one that holds train/ and test/ or val/ (where there are both, val/ chooses
    best.pt), or the one that holds the folders of classes."""
    workers: int = Field(WORKERS, ge=0)
    """Threads that decode image files and cut parts out of images; 0: the program's own."""
    on_error: Literal["fail", "skip"] = "fail"
    """An image file that cannot be read: it is named, and the run ends, or continues without it."""


class FolderOptions(FileOptions):
    layout: ClassVar[str] = "{0}/<class>/<image>, or {0}/train/<class>/<image> and {0}/test/ or val/"
    test_fraction: float = Field(0.2, gt=0.0, lt=1.0)
    """Share of each class's images that is held out to test on, where root itself holds the folders of classes."""
    cache: Literal["auto", "always", "never"] = "auto"
    """Decode images once and keep them in memory, or in each epoch again: the numbers are the same. auto: kept where
    all fit in 2 GB."""


def imagefolder(
    image_size: int,
    limit: int | None,
    train: bool = True,
    root: str = ROOT,
    workers: int = WORKERS,
    on_error: str = "fail",
    cache: str = "auto",
    test_fraction: float = 0.2,
    **asked: Any,
) -> Dataset:
    """One's own images, in folders by their class.

    root/train/<class>/** and root/test/<class>/**, and, to choose best.pt by, root/val/<class>/**.
    Without test/, those of val/ are the test images. With none of these folders, root/<class>/**: test_fraction of each
    class is held out to test on. Kept in memory (cache auto: when all fit in 2 GB), or decoded a batch at a time.
    asked: channels, resize, crop and interpolation, as in FileOptions.
    """
    top, made = Path(root), preprocessing(image_size, **asked)
    classes, found = _in_parts(top, train) if _has_parts(top) else _held_out(top, test_fraction, train)
    every = {part: Files(*images, _of_part(part, made), workers, on_error) for part, images in found.items()}
    # of all parts without a limit, so that it is decided alike for any
    size = sum(len(files) * files.preprocessing.bytes for files in every.values())
    kept = size <= MEMORY_BYTES if cache == "auto" else cache == "always"
    used = [part for part in every if train or part == "test"]
    files = {part: first(every[part], limit) for part in used}
    return _dataset({part: _decode(part_files) for part, part_files in files.items()} if kept else files, classes, made)


def _in_parts(root: Path, train: bool) -> tuple[list[str], dict[str, Labelled]]:
    """(the classes, the images of each part): the training images only if `train`."""
    folders = _parts(root, train)
    classes = class_names(next(iter(folders.values())))
    reported = folders if train else ("test",)
    return classes, {
        part: _labels(folder, classes, part == "train", part in reported) for part, folder in folders.items()
    }


def _held_out(root: Path, fraction: float, report: bool) -> tuple[list[str], dict[str, Labelled]]:
    """(the classes, the images of each part) of a folder of classes. What is held out is a fixed random share of each.

    It is at least one image of each class that has two.
    """
    classes = class_names(root)
    paths, labels = _labels(root, classes, True, report)
    held: list[int] = []
    for of_class in (torch.nonzero(labels == label)[:, 0] for label in range(len(classes))):
        count = min(max(1, round(fraction * len(of_class))), len(of_class) - 1)
        order = torch.randperm(len(of_class), generator=torch.Generator().manual_seed(0))
        held += of_class[order[:count]].tolist()
    if report:
        say(f"{root}: no train/ and test/: of {len(paths):,} images, {len(held):,} are held out to test on")
    chosen = torch.zeros(len(paths), dtype=torch.bool)
    chosen[held] = True
    return classes, {
        part: ([paths[i] for i in torch.nonzero(index)[:, 0].tolist()], labels[index])
        for part, index in (("train", ~chosen), ("test", chosen))
    }


def _of_part(part: str, made: Preprocessing) -> Preprocessing:
    return made.of_training() if part == "train" else made


def _dataset(parts: Mapping[str, Images | Files], classes: list[str], made: Preprocessing) -> Dataset:
    return Dataset(
        parts.get("train"), parts["test"], classes, *normalization(made.channels), flip=True, val=parts.get("val")
    )


def looks_like_imagefolder(root: str) -> bool:
    """Whether a folder is laid out as imagefolder reads it.

    It holds train/, with folders in it, and test/ or val/; or two or more folders with images in each.
    """
    top = Path(root).expanduser()
    if not _has_parts(top):
        folders = [entry for entry in by_name(top) if is_folder(entry)] if top.is_dir() else []
        return len(folders) > 1 and all(map(_holds_an_image, folders))
    training, *held_out = (top / part for part in PARTS)
    return any(part.is_dir() for part in held_out) and training.is_dir() and any(map(Path.is_dir, training.iterdir()))


def has_val(root: str) -> bool:
    """Whether val/ holds validation images: not if they are the test images."""
    return (Path(root) / "val").is_dir() and (Path(root) / "test").is_dir()


def _has_parts(root: Path) -> bool:
    return not root.is_dir() or any((root / part).is_dir() for part in PARTS)


def _holds_an_image(folder: os.DirEntry) -> bool:
    """Whether one of its files, in no folder in it, is called as images are."""
    return any(is_named_as_image(entry.name) for entry in by_name(Path(folder.path)))


def imagenet(
    image_size: int,
    limit: int | None,
    train: bool = True,
    root: str = ROOT,
    workers: int = WORKERS,
    on_error: str = "fail",
    **asked: Any,
) -> Dataset:
    """ImageNet-1K, in folders by class or as its archive unpacks.

    root/train/<wnid>/* and root/val/<wnid>/*, or the ILSVRC2015 archive, which has root/Data/CLS-LOC/train/<wnid>/* and
    all validation images in root/Data/CLS-LOC/val, with their classes in LOC_val_solution.csv (Kaggle's) or in
    Annotations/CLS-LOC/val/*.xml. Class names are those of LOC_synset_mapping.txt where it is there, else the wnids.
    """
    top = Path(root)
    check_root(top, FileOptions.layout)
    images = top / "Data" / "CLS-LOC" if (top / "Data" / "CLS-LOC").is_dir() else top
    training, held_out = images / "train", images / "val"
    if not held_out.is_dir():
        raise UserError(f"data.root: no folder {held_out} beside train/")
    in_folders = any(path.is_dir() for path in held_out.iterdir())
    wnids = class_names(training if train or training.is_dir() or not in_folders else held_out)
    test = _labels(held_out, wnids) if in_folders else _labelled(held_out, _solutions(top), wnids)
    every = ({"train": _labels(training, wnids, True)} if train else {}) | {"test": test}
    made = preprocessing(image_size, **asked)
    files = {
        part: Files(*images, _of_part(part, made), workers, on_error, whole=True) for part, images in every.items()
    }
    return _dataset({part: first(images, limit) for part, images in files.items()}, _named(top, wnids), made)


def class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"data.root: no folder {folder}; expected {folder}/<class>/<image>")
    classes = [entry.name for entry in by_name(folder) if is_folder(entry)]
    if not classes:
        raise UserError(f"data.root: {folder} holds no class folders; expected {folder}/<class>/<image>")
    return classes


def check_root(root: Path, layout: str) -> None:
    """Raise UserError if the folder is not there. layout: of FileOptions, what is expected in it."""
    if not root.is_dir():
        raise UserError(f"data.root: no folder {root}; expected {layout.format(root)}")


def _parts(root: Path, train: bool) -> dict[str, Path]:
    """The folders of train, val and test images; val/ is the test images where there is no test/."""
    check_root(root, FolderOptions.layout)
    found = {name: root / name for name in PARTS if (root / name).is_dir()}
    if "test" not in found:
        if "val" not in found:
            raise UserError(f"data.root: {root} has no test/ and no val/ folder beside train/")
        found["test"] = found.pop("val")
    return ({"train": root / "train"} if train else {}) | found


def _labels(folder: Path, classes: list[str], of_all: bool = False, report: bool = True) -> Labelled:
    """The images of a part and their labels. of_all: of each class there have to be some. report: say which classes and
    files are not used."""
    _check_known(folder, classes)
    found = {name: find(folder / name) for name in classes if (folder / name).is_dir()}
    left = leftovers({name: part.others for name, part in found.items()})
    empty = [name for name in classes if name not in found or not found[name].images]
    if len(empty) == len(classes) or (of_all and empty):
        where = folder if len(empty) == len(classes) else folder / empty[0]
        looked_for = f"looked for {', '.join(sorted(trusted_suffixes()))} and whatever else Pillow reads"
        raise UserError(f"data.root: no images under {where} ({looked_for}{left and f'; not images: {left}'})")
    if report and left:
        say(f"{folder}: not images: {left}")
    if report and empty:
        say(f"{folder}: no images of {len(empty)} of {len(classes)} classes: {_listed(empty)}")
    labels = [label for label, name in enumerate(classes) if name in found for _ in found[name].images]
    return [path for part in found.values() for path in part.images], torch.tensor(labels)


def _check_known(folder: Path, classes: list[str]) -> None:
    """Raise UserError for folders that are no classes of train/."""
    unknown = [entry.name for entry in by_name(folder) if is_folder(entry) and entry.name not in {*classes}]
    if unknown:
        near = nearest(unknown[0], classes)
        hint = f" (nearest to {unknown[0]}: {near})" if near else ""
        raise UserError(f"data.root: {folder} has classes that train/ has not: {_listed(unknown)}{hint}")


def _listed(names: list[str]) -> str:
    return ", ".join([*map(printable, names[:5]), *(["..."] if len(names) > 5 else [])])


def _labelled(folder: Path, solutions: dict[str, str], wnids: list[str]) -> Labelled:
    """Images of one flat folder, with the classes that `solutions` gives to their names."""
    paths, number = sorted(folder.glob("*.JPEG")), {wnid: i for i, wnid in enumerate(wnids)}
    missing = next((path for path in paths if solutions.get(path.stem) not in number), None)
    if not paths or missing:
        raise UserError(f"data.root: {missing or folder}: " + ("its class is not known" if missing else "no *.JPEG"))
    return paths, torch.tensor([number[solutions[path.stem]] for path in paths])


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


def _decode(files: Files) -> Images:
    """All images in memory."""
    asked = files.preprocessing
    pixels = numpy.empty((len(files), asked.image_size, asked.image_size, asked.channels), dtype=numpy.uint8)

    def fill(i: int) -> str | None:
        try:
            pixels[i] = square(files.paths[i], asked)
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
