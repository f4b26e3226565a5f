"""The table of datasets. A new one is a loader, its options and a row in DATASETS."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data import external
from data.folders import FileOptions, FolderOptions, imagefolder, imagenet
from data.images import Dataset
from data.settings import DataSettings
from data.sources import NoOptions, Root, cifar10, cifar100, digits, fake, fashion_mnist, svhn
from utils.config import validate_section
from utils.sections import OWN, Section, part, variants


@dataclass(frozen=True)
class Row:
    """load(image_size, limit, train, **options) -> Dataset, and the keys of the data section that it reads.

    downloads: whether it takes `download`, too, and without it writes what it lacks into its root.
    """

    load: Callable[..., Dataset]
    options: type[Section]
    downloads: bool = False


DATASETS = {
    "digits": Row(digits, NoOptions),
    "cifar10": Row(cifar10, Root, downloads=True),
    "cifar100": Row(cifar100, Root, downloads=True),
    "svhn": Row(svhn, Root, downloads=True),
    "fashion_mnist": Row(fashion_mnist, Root, downloads=True),
    "imagenet": Row(imagenet, FileOptions),
    "imagefolder": Row(imagefolder, FolderOptions),
    "fake": Row(fake, NoOptions),
}

_OPTIONS = {name: row.options for name, row in DATASETS.items()} | {OWN: external.Options}
SECTIONS = variants("name", DataSettings, _OPTIONS, "digits")
"""The data section for each dataset: the common keys and the dataset's options."""


def check(section: DataSettings) -> None:
    """Raise UserError if the function that a section names cannot be imported."""
    if section.name not in DATASETS:
        external.function(section.name)


def load(section: DataSettings, train: bool = True, download: bool = True) -> Dataset:
    """The dataset of a section; without its training images, unless train. Raises UserError if it cannot be had.

    download: whether it may write into its root what it does not find there.
    """
    if section.name not in DATASETS:
        return external.load(section.name, section.image_size, section.limit, train, section.model_extra or {})
    row = DATASETS[section.name]
    own = part(section, row.options).model_dump() | ({"download": download} if row.downloads else {})
    return row.load(section.image_size, section.limit, train, **own)


def with_overrides(section: DataSettings, values: dict[str, Any]) -> DataSettings:
    """The section with other values instead of its own.

    Where they name another dataset, it takes over those of the section's keys that it reads, too. Raises UserError for
    values that it does not read.
    """
    found = section.model_dump()
    kind = SECTIONS.kinds.get(SECTIONS.name(found | values))
    if kind is not None and values.get("name", section.name) != section.name:
        found = {key: value for key, value in found.items() if key in kind.model_fields}
    return validate_section("data", SECTIONS, found | values)
