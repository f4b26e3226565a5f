"""An exported model is measured as the checkpoint that it is of."""

import json

import pytest

from experiment import evaluation
from experiment.exported_evaluation import megabytes
from utils.errors import UserError


@pytest.mark.parametrize("what", ["a.npz", "a.onnx"])
def test_an_export_is_measured_on_the_images_that_are_named(what, run, capsys):
    evaluation.main([str(run / what), f"data.root={run / 'images'}", "data.name=imagefolder", f"output={run / 'out'}"])
    found = json.loads((run / "out" / "evaluation.json").read_text())
    [accuracy] = found["accuracy"].values()
    trained = json.loads((run / "a" / "summary.json").read_text())["accuracy"]["x86"]
    assert accuracy["top1"] == trained["top1"]
    assert accuracy["loss"] == pytest.approx(trained["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.npz"], "data: .*a.npz does not say on which images to measure it"),
        (["a.npz", 'engines=["x86"]', "data.name=digits"], "engines: .*a.npz is an exported model"),
        (["a.npz", "sensitivity=true", "data.name=digits"], "sensitivity: .*a.npz is an exported model"),
        (["exported", f"images={__file__}"], "torch may run code of .*exported/model.pt2: set trust=true"),
        (["a.npz", "data.name=digits"], "data: 10 classes .* trained on 3"),
        (["nothing.pte"], "checkpoint: there is no .*nothing.pte"),
        (["nothing.tflite"], "checkpoint: there is no .*nothing.tflite"),
        (["nothing.onnx", f"images={__file__}"], "checkpoint: there is no .*nothing.onnx"),
    ],
)
def test_mistakes_are_one_line(arguments, message, run):
    with pytest.raises(UserError, match=message):
        evaluation.main([str(run / arguments[0]), *arguments[1:]])


def test_nothing_is_measured_for_an_export_unless_engines_are_named(run, tmp_path, capsys):
    capsys.readouterr()
    evaluation.main([str(run / "a"), f"export={tmp_path / 'b.npz'}"])
    assert "top-1" not in capsys.readouterr().out
    evaluation.main([str(run / "a"), f"export={tmp_path / 'c.npz'}", 'engines=["x86"]', f"output={tmp_path}"])
    assert "top-1" in capsys.readouterr().out


def test_a_folder_is_as_large_as_its_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(500_000))
    assert (megabytes(tmp_path), megabytes(tmp_path / "a")) == (1.0, 0.5)


def test_a_mean_has_a_number_for_each_channel(run):
    with pytest.raises(UserError, match=r"data\.mean: 1 numbers for images of 3 channel"):
        evaluation.main([str(run / "a.npz"), "data.name=imagefolder", f"data.root={run / 'images'}", "data.mean=[0.5]"])
