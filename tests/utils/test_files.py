"""A file is the old one or the new one, never half of each."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils import files
from utils.errors import UserError


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


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    def fail(part):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as full:
        files.write_atomically(tmp_path / "a.json", fail)
    assert full.value.filename == str(tmp_path / "a.json")


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


LOCKS = "import sys; from pathlib import Path; from utils.files import locked; locked(Path(sys.argv[1])).__enter__()"


def refused_elsewhere(folder: Path) -> bool:
    """Whether another process finds the folder locked. In this one, a lock of its own is no obstacle."""
    said = subprocess.run([sys.executable, "-c", LOCKS, str(folder)], capture_output=True, text=True).stderr
    return "UserError: run.name: another train.py is writing to" in said


def test_two_names_of_one_folder_are_one(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "run")
    assert not refused_elsewhere(tmp_path / "run")
    with files.locked(tmp_path / "elsewhere" / "link"):
        assert refused_elsewhere(tmp_path / "run")
        assert refused_elsewhere(tmp_path / "elsewhere" / "link")
    with files.locked(tmp_path / "run"):
        assert refused_elsewhere(tmp_path / "elsewhere" / "link")
        assert refused_elsewhere(tmp_path / "elsewhere" / ".." / "run")


def test_a_lock_empties_no_file(tmp_path):
    (tmp_path / ".run.lock").write_text("mine")
    with files.locked(tmp_path / "run"):
        pass
    assert (tmp_path / ".run.lock").read_text() == "mine"


def test_a_lock_follows_no_link(tmp_path):
    (tmp_path / "diary").write_text("mine")
    (tmp_path / ".run.lock").symlink_to(tmp_path / "diary")
    (tmp_path / ".new.lock").symlink_to(tmp_path / "not there")
    for name in ("run", "new"):
        with pytest.raises(UserError, match=rf"^run.name: cannot lock the folder with .*\.{name}\.lock \("):
            files.locked(tmp_path / name).__enter__()
    assert (tmp_path / "diary").read_text() == "mine"
    assert not (tmp_path / "not there").exists()


@pytest.mark.parametrize("kind", ["pipe", "folder", "name too long"])
def test_a_lock_that_is_no_file_is_one_line(kind, tmp_path):
    name = "a" * 255 if kind == "name too long" else "run"
    if kind == "pipe":
        os.mkfifo(tmp_path / ".run.lock")
    elif kind == "folder":
        (tmp_path / ".run.lock").mkdir()
    with pytest.raises(UserError, match=r"^run.name: cannot lock the folder with "):
        files.locked(tmp_path / name).__enter__()


def test_what_cannot_be_written_is_one_line_and_what_follows_runs(tmp_path, caplog, capsys):
    with files.if_possible(tmp_path / "a.png"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (
        capsys.readouterr().out
        == f"{tmp_path}/a.png could not be written (No space left on device); going on without it\n"
    )
    with pytest.raises(ValueError), files.if_possible(tmp_path / "a.png"):
        raise ValueError("a bug")
