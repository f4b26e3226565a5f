"""The table of datasets. A new one is a loader, its options, its usual image size and a row in DATASETS."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import create_model

from data import external
from data.batches import Draw
from data.decoding import Preprocessing, preprocessing
from data.folders import FileOptions, FolderOptions, check_root, has_val, imagefolder, imagenet
from data.images import Dataset, check_normalization, in_grey
from data.mixing import Mixing
from data.policies import POLICIES
from data.settings import DataSettings
from data.sources import NoOptions, Root, cifar10, cifar100, digits, fake, fashion_mnist, svhn
from utils.config import validate_section
from utils.errors import UserError
from utils.names import plain_name
from utils.sections import NO_SOURCE, OWN, Section, part, variants


@dataclass(frozen=True)
class Row:
    """load(image_size, limit, train, **options) -> Dataset, and the keys of the data section that it reads.

    image_size: the default of data.image_size, which its images have or are usually brought to. downloads: whether it
    takes `download`, too, and without it writes what it lacks into its root. auto: the dataset on which the pairs of
    data.augment=auto were learned.
    """

    load: Callable[..., Dataset]
    options: type[Section]
    image_size: int = 32
    downloads: bool = False
    auto: str = "imagenet"


DATASETS = {
    "digits": Row(digits, NoOptions, 16, auto="svhn"),
    "cifar10": Row(cifar10, Root, 32, downloads=True, auto="cifar10"),
    "cifar100": Row(cifar100, Root, 32, downloads=True, auto="cifar10"),
    "svhn": Row(svhn, Root, 32, downloads=True, auto="svhn"),
    "fashion_mnist": Row(fashion_mnist, Root, 28, downloads=True),
    "imagenet": Row(imagenet, FileOptions, 224),
    "imagefolder": Row(imagefolder, FolderOptions, 224),
    "fake": Row(fake, NoOptions, 32, auto="cifar10"),
}


def _options(row: Row) -> type[Section]:
    """The dataset's options, among them the image size with its own default, and which channels there are."""
    size, channels = (copy.copy(DataSettings.model_fields[key]) for key in ("image_size", "channels"))
    size.default, channels.metadata = row.image_size, []
    keys: dict[str, Any] = {"image_size": (int, size)}
    if "channels" not in row.options.model_fields:
        keys["channels"] = (Literal[1, 3], channels)
    return create_model(row.options.__name__, __base__=row.options, __cls_kwargs__=NO_SOURCE, **keys)


_OPTIONS = {name: _options(row) for name, row in DATASETS.items()} | {OWN: external.Options}
SECTIONS = variants("name", DataSettings, _OPTIONS, "digits")
"""The data section for each dataset: the common keys and the dataset's options."""


def check(section: DataSettings) -> None:
    """Raise UserError for what no key says by itself.

    mean or std without a number for each channel, a policy for images without colours, a function that cannot be
    imported.
    """
    check_normalization(section.mean, section.std, section.channels)
    if section.augment in POLICIES and section.channels not in (1, 3):
        raise UserError(f"data.augment: {section.augment} is for 1 or 3 channels; data.channels is {section.channels}")
    if section.name not in DATASETS:
        external.function(section.name)


def check_folder(section: DataSettings) -> None:
    """Raise UserError if the images are read from a folder that is not there."""
    if isinstance(section, FileOptions):
        check_root(Path(section.root), section.layout)


def load(section: DataSettings, train: bool = True, download: bool = True) -> Dataset:
    """The dataset of a section; without its training images, unless train. Raises UserError if it cannot be had.

    download: whether it may write into its root what it does not find there. Its class names are in the form in which
    they are saved (utils/names.py); its mean and std are those of the section, if it says any.
    """
    found = _load(section, train, download)
    found = in_grey(found) if section.channels == 1 and len(found.mean) == 3 else found
    mean, std = tuple(section.mean or found.mean), tuple(section.std or found.std)
    return replace(found, classes=[plain_name(str(name)) for name in found.classes], mean=mean, std=std)


def _load(section: DataSettings, train: bool, download: bool) -> Dataset:
    if section.name not in DATASETS:
        options = section.model_extra or {}
        return external.load(section.name, section.image_size, section.limit, train, options, section.channels)
    row = DATASETS[section.name]
    own = part(section, row.options).model_dump() | ({"download": download} if row.downloads else {})
    return row.load(section.image_size, section.limit, train, **own)


TRAINING_ALONE = ("batch_size", "augment", "random_erasing", "mixup", "cutmix", "sampling")
"""Keys that say how training batches are made, and change no image of the dataset."""


def draw_of(section: DataSettings, dataset: Dataset, seed: int, rank: int = 0, world: int = 1) -> Draw:
    """How a section asks for training batches of its dataset to be drawn, for process `rank` of `world`."""
    mixes = section.mixup or section.cutmix
    return Draw(
        seed=seed,
        augment=section.augment,
        flip=dataset.flip,
        learned_on=DATASETS[section.name].auto if section.name in DATASETS else "imagenet",
        erasing=section.random_erasing,
        mixing=Mixing(section.mixup, section.cutmix, len(dataset.classes)) if mixes else None,
        balanced=section.sampling == "balanced",
        rank=rank,
        world=world,
    )


def plain_draw_of(section: DataSettings, dataset: Dataset, seed: int) -> Draw:
    """The same with crops alone: images as those that a model is used on, whose statistics batch norm needs."""
    return Draw(seed, "none" if section.augment == "none" else "crop", dataset.flip)


def switch_dataset(values: dict[str, Any], name: str) -> tuple[dict[str, Any], list[str]]:
    """(the values of a data section with another dataset's name, the keys that were left out).

    Left out are the keys that the other dataset does not read, and image_size.
    """
    kept = {key: value for key, value in _read_by(name, values).items() if key != "image_size"}
    return kept | {"name": name}, [key for key in values if key not in kept]


def _read_by(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that the dataset of that name reads; all of them if there is no such dataset."""
    kind = SECTIONS.kinds.get(SECTIONS.name({"name": name}))
    return {key: value for key, value in values.items() if kind is None or key in kind.model_fields}


def with_val_fraction(section: DataSettings) -> DataSettings:
    """The section with the share of the training images that is held out where it leaves that open."""
    if section.val_fraction is not None:
        return section
    holds_out = isinstance(section, FolderOptions) and not has_val(section.root)
    return section.model_copy(update={"val_fraction": 0.1 if holds_out else 0.0})


def stated(section: DataSettings) -> dict[str, Any]:
    """image_size, resize, crop and interpolation as the section has them or leaves them to their defaults.

    Without those that its dataset does not read.
    """
    if not isinstance(section, FileOptions):
        return {"image_size": section.image_size}
    made = preprocessing_of(section)
    return {key: getattr(made, key) for key in ("image_size", "resize", "crop", "interpolation")}


def preprocessing_of(section: DataSettings) -> Preprocessing:
    """What becomes of an image file. Images of a dataset that are in memory were resized to the square as they are."""
    size = section.image_size
    if not isinstance(section, FileOptions):
        return Preprocessing(size, size, "squash", channels=section.channels)
    keys = part(section, FileOptions).model_dump(include={"channels", "resize", "crop", "interpolation"})
    return preprocessing(size, **keys)


def with_overrides(section: DataSettings, values: dict[str, Any]) -> DataSettings:
    """The section with other values instead of its own. With another image size, its resize is scaled, too.

    Where they name another dataset, it takes over those of the section's keys that it reads, too. Raises UserError for
    values that it does not read.
    """
    found = section.model_dump()
    name = values.get("name", section.name)
    if name != section.name:
        found = _read_by(name, found)
    size = values.get("image_size")
    found = scaled(found, size) if isinstance(size, int) else found
    return validate_section("data", SECTIONS, found | values)


def scaled(keys: dict[str, Any], image_size: int) -> dict[str, Any]:
    """The keys of a data section for another image size: as large a part of each image is seen."""
    resize = keys.get("resize")
    return keys | ({"resize": round(resize * image_size / keys["image_size"])} if resize else {})
