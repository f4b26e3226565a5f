"""Messages reach the terminal and the run's log file."""

import re

import pytest

from utils import console
from utils.errors import UserError


def test_without_a_terminal_long_work_prints_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(console, "PROGRESS_SECONDS", 0.0)
    with console.Progress(100, "epoch 3", "images") as progress:
        progress.add(40, lambda: "loss 0.5")
    assert re.search(r"epoch 3: 40 of 100 images, \d+ s left; loss 0.5", capsys.readouterr().out)


def test_messages_and_the_reason_of_an_early_end_are_kept_in_a_file(tmp_path, capsys):
    file = tmp_path / "run.log"

    def work() -> None:
        with console.log_to(file):
            console.say("one")
            raise ValueError("two")

    with pytest.raises(ValueError):
        work()
    console.say("three")
    assert [line.split("  ", 1)[1] for line in file.read_text().splitlines()] == ["one", "ended: two"]
    assert capsys.readouterr().out == "one\nthree\n"


def test_what_names_hold_reaches_neither_the_terminal_nor_the_file(tmp_path, capsys):
    def work() -> None:
        with console.log_to(tmp_path / "run.log"):
            console.say("two\nlines of a\x1b[2J and \udce9")
            raise UserError("b\n\x1b[2J")

    with pytest.raises(UserError):
        work()
    assert capsys.readouterr().out == "two\nlines of a\\x1b[2J and \\xe9\n"
    assert "lines of a\\x1b[2J and \\xe9\n" in (tmp_path / "run.log").read_text()
    assert (tmp_path / "run.log").read_text().endswith("ended: b\\x0a\\x1b[2J\n")


def test_messages_from_before_the_file_could_be_opened_come_first_in_it(tmp_path, capsys):
    with console.captured_messages() as earlier:
        console.say("left out: a.jpg")
    console.say("between")
    with console.log_to(tmp_path / "run.log", earlier):
        console.say("epoch 1")
    written = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert [line.partition("  ")[2] for line in written] == ["left out: a.jpg", "epoch 1"]
    assert capsys.readouterr().out.splitlines() == ["left out: a.jpg", "between", "epoch 1"]
