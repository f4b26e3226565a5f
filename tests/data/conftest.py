"""What the tests of datasets share: a folder of images, and the dataset that is read from it."""

from pathlib import Path

import numpy
import pytest
from PIL import Image

import data


@pytest.fixture
def folder(tmp_path):
    """Two classes of odd-sized images, 12 to train and 4 to test."""
    random = numpy.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (40 + i, 52, 3), dtype=numpy.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def imagefolder(folder: Path, workers: int = 0, **options) -> data.Dataset:
    return data.DATASETS["imagefolder"].load(32, None, root=str(folder), workers=workers, **options)
