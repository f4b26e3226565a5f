"""Plain values of others' checkpoints are read by functions that cannot be made to do anything else."""

import argparse
import collections
import datetime
import pathlib
import pickle
import random
import types

import numpy
import pytest
import torch

from utils.errors import UserError
from utils.runs import tensor_file
from utils.runs.plain_values import ALLOWED, Array, Dtype

VALUES = {
    "double": (numpy.float64(71.5), 71.5),
    "half": (numpy.float16(0.5), 0.5),
    "integer": (numpy.int64(-3), -3),
    "flag": (numpy.bool_(True), True),
    "text of NumPy": (numpy.str_("ab"), None),
    "namespace": (argparse.Namespace(lr=0.1, inner=argparse.Namespace(x=[1])), {"lr": 0.1, "inner": {"x": [1]}}),
    "simple namespace": (types.SimpleNamespace(a=1), {"a": 1}),
    "path": (pathlib.Path("/a/b"), "/a/b"),
    "date": (datetime.datetime(2020, 1, 2), None),
    "duration": (datetime.timedelta(1), None),
    "default dict": (collections.defaultdict(list, {"a": [1]}), {"a": [1]}),
    "ordered dict": (collections.OrderedDict(a=1), {"a": 1}),
    "random state": (random.getstate(), random.getstate()),
    "version of torch": (torch.__version__, str(torch.__version__)),
    "dtype of NumPy": (numpy.dtype("f4"), None),
    "objects of NumPy": (numpy.array(["a"], dtype=object), None),
}
ARRAYS = {
    "whole numbers": numpy.arange(6).reshape(2, 3),
    "columns first": numpy.asfortranarray(numpy.arange(12.0).reshape(2, 3, 2)),
    "empty": numpy.zeros((0, 3), dtype=numpy.float32),
    "one number": numpy.array(3.0),
    "random state": numpy.random.RandomState(0).get_state()[1],
}


def through_a_file(value, tmp_path):
    torch.save({"value": value}, tmp_path / "a.pt")
    return tensor_file.load(str(tmp_path / "a.pt"))["value"]


@pytest.mark.parametrize("kind", VALUES)
def test_values_that_stand_beside_weights(kind, tmp_path):
    value, expected = VALUES[kind]
    assert through_a_file(value, tmp_path) == expected


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_become_tensors(kind, tmp_path):
    found = through_a_file(ARRAYS[kind], tmp_path)
    assert found.shape == ARRAYS[kind].shape
    assert numpy.array_equal(found.numpy(), ARRAYS[kind])


def test_files_of_numpy_1_and_2_name_the_same_functions():
    names = {name for _, name in ALLOWED}
    assert {f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")} <= names


@pytest.mark.parametrize(
    "state",
    [(1, (10**12,), "f4", False, b"1234"), (1, (-1, -1), "f4", False, b"1234"), (1, (1,), "f4", False, b"12345")],
)
def test_an_array_is_no_larger_than_its_bytes(state):
    version, shape, name, order, content = state
    with pytest.raises(ValueError):
        Array().__setstate__((version, shape, Dtype(name), order, content))


@pytest.mark.parametrize("name", ["O", "V8", "M8", "f4,f4", 7, None])
def test_a_dtype_that_is_no_number_reads_no_memory(name):
    with pytest.raises(ValueError):
        Dtype(name).read(b"12345678")


def test_a_value_within_itself_is_refused(tmp_path):
    endless: dict = {}
    endless["again"] = endless
    with pytest.raises(UserError, match="nested too deeply"):
        through_a_file(endless, tmp_path)


@pytest.mark.parametrize("name", [name for _, name in ALLOWED])
def test_what_takes_the_place_of_a_function_only_makes_values(name):
    """Whatever arguments a file gives: a value, or an error that `load` turns into one line."""
    made = next(function for function, other in ALLOWED if other == name)
    for arguments in ((), ("echo hacked",), ("/etc/passwd", "w"), (b"x",) * 3, (None, 1, 2)):
        try:
            value = made(*arguments)
        except (TypeError, ValueError):
            continue
        assert pickle.dumps(value) is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, not the file itself: git lfs pull"),
        (b"<!DOCTYPE html>", "a web page, not the file that was to be downloaded"),
        (b"\x89HDF\r\n", "a file of HDF5"),
    ],
)
def test_a_file_that_is_something_else_is_named(content, message, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match=rf"a.pth: not a readable checkpoint \({message}"):
        tensor_file.load(str(tmp_path / "a.pth"))


def test_a_whole_model_is_refused_with_what_to_save_instead(tmp_path):
    with pytest.raises(UserError, match=r"run code of torch.nn.modules.linear.Linear; .*torch.save\(model.state_dict"):
        through_a_file(torch.nn.Linear(2, 2), tmp_path)


def test_damaged_safetensors_are_named(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(UserError, match=r"a.safetensors: not a readable checkpoint"):
        tensor_file.load(str(tmp_path / "a.safetensors"))
