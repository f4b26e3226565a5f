"""A file is the old one or the new one, never half of each."""

import pytest

from utils import files


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def fail(part):
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, fail)
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_spreadsheet_shows_text_and_computes_none(tmp_path):
    rows = [
        {"name": "=HYPERLINK(1)", "value": -0.5, "=a": "-0.5"},
        {"name": "@SUM(1)", "value": None},
        {"name": "-x\x1b\n\udce9", "value": 3},
        {"name": "layer1.conv", "value": "+1"},
    ]
    files.write_csv(tmp_path / "a.csv", rows)
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines() == [
        "name,value,'=a",
        "'=HYPERLINK(1),-0.5,-0.5",
        "'@SUM(1),,",
        r"'-x\x1b\x0a\xe9,3,",
        "layer1.conv,+1,",
    ]


def test_text_that_is_not_utf_8_can_be_written(tmp_path):
    files.write_text(tmp_path / "error.txt", "caf\udce9")
    assert (tmp_path / "error.txt").read_text(encoding="utf-8").startswith("caf")
