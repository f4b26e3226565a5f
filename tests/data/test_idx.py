"""Files in the format of MNIST are read as they were written, and damaged ones are refused in a line."""

import gzip

import numpy
import pytest

from data import idx
from utils.errors import UserError

VALUES = numpy.random.default_rng(0).integers(0, 256, (3, 5, 4), dtype=numpy.uint8)
WRITTEN = bytes([0, 0, 8, 3]) + numpy.array(VALUES.shape, ">u4").tobytes() + VALUES.tobytes()


@pytest.mark.parametrize("name", ["images-ubyte", "images-ubyte.gz"])
def test_values_are_those_that_were_written(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(gzip.compress(WRITTEN) if path.suffix == ".gz" else WRITTEN)
    assert numpy.array_equal(idx.read(path).numpy(), VALUES)


DAMAGED = {
    "empty": b"",
    "half": WRITTEN[:-7],
    "too long": WRITTEN + b"0",
    "floats": bytes([0, 0, 13, 3]) + WRITTEN[4:],
    "text": b"not a table at all",
    "half an archive": gzip.compress(WRITTEN)[:-9],
    "no archive": WRITTEN,
}


@pytest.mark.parametrize("kind", list(DAMAGED))
def test_a_damaged_file_is_refused_in_a_line(kind, tmp_path):
    path = tmp_path / ("images.gz" if "archive" in kind else "images")
    path.write_bytes(DAMAGED[kind])
    with pytest.raises(UserError, match=rf"^data.root: {path} is not a readable IDX file"):
        idx.read(path)


def test_without_all_four_files_there_are_no_parts(tmp_path):
    for kind in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "train-images-idx3-ubyte"):
        (tmp_path / kind).write_bytes(WRITTEN)
    assert idx.parts(tmp_path, train=True) == []
    assert len(idx.parts(tmp_path, train=False)) == 1
