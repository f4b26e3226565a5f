"""Datasets. A new one is a loader, its options, and a row in data/registry.py; or package.module:function."""

from data.batches import Draw, batches, check_training, evaluation_batch, pixels
from data.decoding import IMAGENET_MEAN
from data.external import check_trusted
from data.folders import looks_like_imagefolder
from data.identity import identity
from data.image_files import find as find_images
from data.image_files import is_named_as_image
from data.imagenet_names import imagenet_names, readable
from data.images import Dataset, Files, Images, check_classes, check_normalization, first, renormalized, split
from data.registry import (
    DATASETS,
    SECTIONS,
    TRAINING_ALONE,
    check,
    check_folder,
    draw_of,
    load,
    plain_draw_of,
    preprocessing_of,
    scaled,
    stated,
    switch_dataset,
    with_overrides,
    with_val_fraction,
)
from data.settings import DataSettings
from data.sources import ROOT

__all__ = [
    "DATASETS",
    "IMAGENET_MEAN",
    "ROOT",
    "SECTIONS",
    "TRAINING_ALONE",
    "DataSettings",
    "Dataset",
    "Draw",
    "Files",
    "Images",
    "batches",
    "check",
    "check_classes",
    "check_folder",
    "check_normalization",
    "check_training",
    "check_trusted",
    "draw_of",
    "evaluation_batch",
    "find_images",
    "first",
    "identity",
    "imagenet_names",
    "is_named_as_image",
    "load",
    "looks_like_imagefolder",
    "pixels",
    "plain_draw_of",
    "preprocessing_of",
    "readable",
    "renormalized",
    "scaled",
    "split",
    "stated",
    "switch_dataset",
    "with_overrides",
    "with_val_fraction",
]
