"""Exported files are told by their names, and read with what they say of their images, or refused in a line."""

import shutil

import pytest
import torch

from experiment import evaluation, exported
from tests.conftest import ON_PROGRAMS
from utils.errors import UserError


def test_files_and_folders_of_exports_are_told_from_others(run):
    names = ["a.npz", "a.onnx", "exported", "a", "a/last.pt", "images"]
    assert [exported.is_export(str(run / name)) for name in names] == [True] * 3 + [False] * 3


ENGINES = {"a.npz": "packed", "a.onnx": "onnxruntime", "exported": "torch.export"}


@pytest.mark.parametrize(("name", "engine"), ENGINES.items())
def test_each_says_the_same_of_its_images_and_computes_logits(name, engine, run):
    found = exported.read(str(run / name), trust=True)
    assert found.engine == engine
    assert (found.info.image_size, found.info.channels, found.info.classes) == (16, 3, ["bright", "dark", "middle"])
    assert (found.info.resize, found.info.crop, found.info.interpolation) == (16, "center", "bilinear")
    with torch.inference_mode():
        assert found.run(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize("engine", ON_PROGRAMS)
def test_a_program_has_what_it_says_beside_it(engine, run, tmp_path):
    ending = {"executorch": "pte", "litert": "tflite"}[engine]
    evaluation.main([str(run / "a"), f"export={tmp_path / 'a'}.{ending}"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", f"a.{ending}", "a_example.py"]
    found, packed = (exported.read(str(file), trust=False) for file in (tmp_path / f"a.{ending}", run / "a.npz"))
    assert (found.engine, found.info) == (engine, packed.info)
    images = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(found.run(images), packed.run(images))
    (tmp_path / f"b.{ending}").write_bytes((tmp_path / f"a.{ending}").read_bytes()[:1000])
    with pytest.raises(UserError, match=rf"b\.{ending}: not a readable program with b\.json"):
        exported.read(str(tmp_path / f"b.{ending}"), trust=False)
    shutil.copy(tmp_path / "a.json", tmp_path / "b.json")
    with pytest.raises(UserError, match=rf"b\.{ending}: not a"):
        exported.read(str(tmp_path / f"b.{ending}"), trust=False)


@pytest.mark.parametrize("name", ["a.npz", "a.onnx"])
def test_a_damaged_file_is_a_line(name, run, tmp_path):
    (tmp_path / name).write_bytes((run / name).read_bytes()[:1000])
    with pytest.raises(UserError, match=name):
        exported.read(str(tmp_path / name), trust=False)


def test_a_file_that_says_nothing_of_its_images_is_refused(tmp_path):
    import onnx

    onnx.save(onnx.ModelProto(), tmp_path / "bare.onnx")
    with pytest.raises(UserError, match=r"bare\.onnx: image_size"):
        exported.read(str(tmp_path / "bare.onnx"), trust=False)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_a_line(broken, run, monkeypatch):
    spoiled = exported.Exported(lambda images: torch.full((len(images), 3), broken), None, "packed")
    monkeypatch.setitem(exported.READERS, ".npz", lambda path: spoiled)
    found = exported.read(str(run / "a.npz"), trust=False)
    with pytest.raises(UserError, match=r"a\.npz: its logits \[2, 3\] are not finite"):
        found.run(torch.zeros(2, 3, 16, 16))
