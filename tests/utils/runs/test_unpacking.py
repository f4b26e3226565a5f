"""A file that would become too much, or too deep, is refused before it is unpacked."""

import pickle
import zipfile

import numpy
import pytest
import torch

import quant
from utils.errors import UserError
from utils.runs import tensor_file, unpacking


def archive(path, pickled: bytes, zeros: int = 0) -> str:
    """An archive as torch writes it, with this pickle and some zeros, compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in (("data.pkl", pickled), ("version", b"3"), ("byteorder", b"little")):
            file.writestr(f"archive/{name}", content)
        with file.open("archive/data/0", "w") as entry:
            for _ in range(zeros // 2**20):
                entry.write(bytes(2**20))
    return str(path)


def nested_key(depth: int) -> bytes:
    """The pickle of a dict whose key is a tuple in a tuple in a tuple ..."""
    return b"\x80\x02})" + b"\x85" * depth + b"Ns."


@pytest.mark.parametrize("name", ["bomb.pt", "bomb.npz", "bomb.safetensors"])
def test_an_archive_that_unpacks_to_much_more_than_it_is_is_refused(name, tmp_path):
    path = archive(tmp_path / name, pickle.dumps({}, 2), 2**28)
    load = quant.load_packed if name.endswith("npz") else tensor_file.load
    with pytest.raises(UserError, match=r"would unpack to 0\.3 GB, and has 0\.\d MB: not what it says it is"):
        load(path)


def test_what_memory_does_not_hold_is_not_unpacked(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "a.pt")
    monkeypatch.setattr(unpacking, "available", lambda: 10**6)
    with pytest.raises(UserError, match=r"it would take 4\.0 MB of memory, of which 1\.0 MB are free"):
        tensor_file.load(str(tmp_path / "a.pt"))


def test_what_is_written_here_is_small_enough(tmp_path):
    tensor_file.save(tmp_path / "a.pt", {"a": torch.zeros(1000), "b": {("c", 1): [1, 2.0, None, (3, ())]}})
    assert unpacking.check_archive(str(tmp_path / "a.pt")) > 4000
    unpacking.check_depth(str(tmp_path / "a.pt"))
    assert tensor_file.load(str(tmp_path / "a.pt"))["b"] == {("c", 1): [1, 2.0, None, (3, ())]}
    numpy.savez_compressed(tmp_path / "a.npz", zeros=numpy.zeros(10**7))
    assert unpacking.check_archive(str(tmp_path / "a.npz")) > 8 * 10**7, "any file may unpack to that"


@pytest.mark.parametrize("depth", [2000, 1_000_000])
@pytest.mark.parametrize("form", ["archive", "old"])
def test_tuples_within_tuples_do_not_end_the_process(form, depth, tmp_path):
    path = str(tmp_path / "deep.pt")
    if form == "archive":
        archive(path, nested_key(depth))
    else:
        before = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
        (tmp_path / "deep.pt").write_bytes(before + nested_key(depth) + pickle.dumps([], 2))
    with pytest.raises(UserError, match=r"not a readable checkpoint \(values nested too deeply\)"):
        tensor_file.load(path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_depth_is_counted_through_all_operations(protocol, tmp_path):
    shared = ((1, 2), [(3, (4,))])
    value = {"a": shared, "b": {"c": (shared, shared)}, ("d", ("e",)): torch.Size([1]), "f": (1, 2, 3, 4, 5)}
    path = archive(tmp_path / "a.pt", pickle.dumps(value, protocol))
    for deepest, fine in ((6, True), (1, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(unpacking, "DEEPEST", deepest)
            if fine:
                unpacking.check_depth(path)
            else:
                with pytest.raises(ValueError, match="nested too deeply"):
                    unpacking.check_depth(path)


def test_few_bytes_do_not_become_many_values(tmp_path):
    """A list of two lists of two lists ..., thirty deep: all of them one list each."""
    laughs: list = []
    for _ in range(30):
        laughs = [laughs, laughs]
    with pytest.raises(UserError, match="more values than it has bytes"):
        tensor_file.load(archive(tmp_path / "a.pt", pickle.dumps({"a": laughs}, 2)))
