"""What a model says of single pictures: the likeliest classes, as the test images are seen, in a table and a file."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from experiment import evaluation, prediction
from utils.errors import UserError


def asked(run, what: str, *keys: str) -> list[dict]:
    evaluation.main([str(run / what), f"images={run / 'images'}", f"output={run / 'out'}", *keys])
    return list(csv.DictReader((run / "out" / "predictions.csv").read_text().splitlines()))


def test_pictures_are_told_apart(run, capsys):
    rows = asked(run, "a")
    right = [row["class 1"] == row["image"].split("/")[-2] for row in rows]
    assert len(rows) == 36
    assert sum(right) > 30
    assert all(float(row["percent 1"]) >= float(row["percent 2"]) >= float(row["percent 3"]) for row in rows)
    assert "class 4" not in rows[0]
    shown = capsys.readouterr().out
    assert "by reference\n" in shown
    assert "\nbright/0.png " in shown


def test_every_file_of_ours_says_the_same(run):
    expected = asked(run, "a")
    assert asked(run, "a/last.pt", 'engines=["x86"]') == expected
    assert asked(run, "a.npz") == expected
    assert asked(run, "a.onnx") == expected
    assert asked(run, "exported", "trust=true") == expected


def test_of_one_picture_a_class_is_a_line(run, capsys):
    evaluation.main([str(run / "a"), f"images={run / 'images' / 'dark' / '0.png'}", f"output={run / 'out'}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "converting the model for reference"
    assert lines[1].endswith("dark/0.png, by reference")
    assert lines[5].split()[0] == "dark"
    assert len(list(csv.DictReader((run / "out" / "predictions.csv").read_text().splitlines()))) == 1


def test_of_several_one_that_cannot_be_read_is_left_out(run, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.new("RGB", (30, 30)).save(tmp_path / "good.png")
    evaluation.main([str(run / "a"), f"images={tmp_path}", f"output={run / 'out'}"])
    assert "left out: " in (shown := capsys.readouterr().out)
    assert "1 of 2 pictures" in shown
    with pytest.raises(UserError, match=r"bad\.png: not a readable image"):
        evaluation.main([str(run / "a"), f"images={tmp_path / 'bad.png'}"])


def test_no_picture_is_a_line(run, tmp_path):
    for path, message in ((tmp_path / "nowhere", "no picture"), (tmp_path, "no pictures in")):
        with pytest.raises(UserError, match=f"^images: {message} {path}$"):
            evaluation.main([str(run / "a"), f"images={path}"])


@pytest.mark.parametrize("keys", [["export=a.onnx"], ["sensitivity=true"]])
def test_nothing_else_is_done_with_pictures(keys, run):
    with pytest.raises(UserError, match=r"^command line: (export|sensitivity): with `images`, nothing is"):
        evaluation.main([str(run / "a"), f"images={run / 'images'}", *keys])


def test_a_mean_has_a_number_for_each_channel(run):
    with pytest.raises(UserError, match=r"data\.mean: 2 numbers for images of 3 channel"):
        evaluation.main([str(run / "a"), f"images={run / 'images'}", "data.mean=[0.5,0.5]"])


def test_a_model_of_one_class_has_no_second():
    rows = prediction.rows_of(torch.zeros(2, 1), [Path("a"), Path("b")], ["only"])
    assert prediction.shown(rows, "x86").splitlines()[2:] == [
        "image  class       %",
        "--------------------",
        "a       only  100.00",
        "b       only  100.00",
    ]
