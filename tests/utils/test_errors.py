"""A user's mistake is one line and exit code 2; a bug keeps its traceback."""

import errno
import signal

import pytest

from utils import errors
from utils.errors import UserError


def raising(error: BaseException):
    def main(arguments: list[str]) -> None:
        raise error

    return main


def test_an_error_without_text_is_named_by_its_type():
    for read in (errors.first_line, errors.joined_lines):
        assert read(ValueError()) == "ValueError"
        assert read(ValueError(), 5) == "Value"
    assert errors.first_line(ValueError("a\nb")) == "a"
    assert errors.joined_lines(ValueError("a\n b")) == "a b"


def test_the_nearest_choice_is_similar_or_none():
    assert errors.nearest("resnt20", ["resnet20", "vgg11"]) == "resnet20"
    assert errors.nearest("zzz", ["resnet20", "vgg11"]) is None


def test_an_unknown_name_is_refused_with_the_choices_and_the_nearest():
    table = {"lsq": 1, "ptq": 2}
    assert errors.choose(table, "ptq", "quant.method") == 2
    with pytest.raises(UserError, match=r"^quant.method: unknown 'lsqq'; choose from lsq, ptq, a:b \(nearest: lsq\)$"):
        errors.choose(table, "lsqq", "quant.method", "a:b")
    with pytest.raises(UserError, match=r"unknown \['ptq'\]"):
        errors.choose(table, ["ptq"], "quant.method")


def test_nothing_is_printed_where_nothing_is_wrong(capfd):
    errors.run(lambda arguments: None)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a.json: key: wrong"), 2, "a.json: key: wrong"),
        (UserError("a\n\x1b[2J\udce9.png: wrong"), 2, r"a\x0a\x1b[2J\xe9.png: wrong"),
        (OSError(errno.ENOSPC, "No space left on device", "last.pt"), 2, "last.pt: No space left on device"),
        (OSError(errno.EACCES, "Permission denied", "last.pt"), 2, "last.pt: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a.csv"), 2, "a.csv: File name too long"),
        (UserError("classes: a\nb\x1b[2J, é"), 2, r"classes: a\x0ab\x1b[2J, é"),
        (KeyboardInterrupt(), 128 + signal.SIGINT, "interrupted"),
    ],
)
def test_what_a_user_can_correct_is_one_line(error, code, line, capsys):
    with pytest.raises(SystemExit) as ended:
        errors.run(raising(error))
    assert ended.value.code == code
    assert capsys.readouterr().err == f"{line}\n"


def test_a_line_names_its_process(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit):
        errors.run(raising(UserError("wrong")))
    assert capsys.readouterr().err == "process 3: wrong\n"


@pytest.mark.parametrize("bug", [ValueError("a bug"), OSError("a library's")])
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)):
        errors.run(raising(bug))
