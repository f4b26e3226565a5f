"""Where a run starts: what makes it the same run, what it may differ in, what becomes of another in its folder."""

import json
import os

import pytest

from utils import files
from utils.errors import UserError
from utils.runs.folder import (
    INPUTS,
    RunFolder,
    check_no_single_run,
    check_no_sweep,
    differences,
    effective_resume,
    read_summary,
    resume_hint,
)

SETTINGS = {"note": "", "optim": {"lr": 0.1}, "quant": {"layers": {}}, "run": {"engines": ["x86"], "resume": "auto"}}


def changed(section: str, key: str, value) -> dict:
    return SETTINGS | {section: SETTINGS[section] | {key: value}}


@pytest.fixture
def finished(tmp_path):
    """The folder of a finished run."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SETTINGS))
    (folder / "summary.json").write_text(json.dumps({"accuracy": {"fake_quant": {"top1": 1.0}}}))
    return folder


def test_the_same_settings_are_finished_and_others_are_not(finished):
    assert RunFolder(finished, SETTINGS, 3).find_start().finished
    assert RunFolder(finished, SETTINGS | {"note": "another"}, 3).is_finished(), "a note changes nothing"
    assert RunFolder(finished, changed("run", "resume", "never"), 3).is_finished()
    assert not RunFolder(finished, changed("optim", "lr", 0.2), 3).is_finished()
    assert not RunFolder(finished, changed("run", "engines", []), 3).is_finished()
    assert not RunFolder(finished, SETTINGS, 3, resume="never").find_start().finished


def test_keys_that_a_run_fills_in_may_differ(finished):
    auto = changed("quant", "layers", "auto")
    assert not RunFolder(finished, auto, 3).is_finished()
    assert RunFolder(finished, auto, 3, filled_in=("quant.layers",)).is_finished()


def test_a_run_that_read_something_else_is_another_run_whatever_the_times_of_files(finished, capsys):
    read = {"data": {"classes": {"0": "cat", "1": "dog"}}, "model.weights": "one"}
    assert RunFolder(finished, SETTINGS, 3, inputs=read).is_finished(), "an older version kept no inputs"
    (finished / "inputs.json").write_text(json.dumps(read))
    os.utime(finished / "summary.json", (0, 0))
    assert RunFolder(finished, SETTINGS, 3, inputs=read).is_finished()
    exchanged = RunFolder(finished, SETTINGS, 3, inputs=read | {"data": {"classes": {"0": "dog", "1": "cat"}}})
    assert not exchanged.is_finished()
    exchanged.move_aside()
    assert 'it has other inputs (data.classes.0: "cat" there, "dog" here; ' in capsys.readouterr().out


def test_where_the_inputs_lie_does_not_matter_if_it_is_known_what_they_are(finished):
    moved = SETTINGS | {"model": {"weights": "elsewhere/a.pt"}}
    assert not RunFolder(finished, moved, 3, inputs={}).is_finished()
    (finished / "inputs.json").write_text("{}")
    assert RunFolder(finished, moved, 3, inputs={}).is_finished()


def test_a_folder_is_moved_aside_under_the_next_free_number(finished):
    finished.with_name("run.1").mkdir()
    RunFolder(finished, SETTINGS, 3).move_aside()
    assert not finished.exists()
    assert (finished.with_name("run.2") / "summary.json").exists()


def test_a_folder_without_a_checkpoint_or_a_summary_stays(finished):
    (finished / "summary.json").unlink()
    RunFolder(finished, SETTINGS, 3).move_aside()
    assert (finished / "config.json").exists()


def test_a_named_checkpoint_is_copied_with_the_best_beside_it(finished, tmp_path):
    for name in ("mine.pt", "best.pt"):
        (tmp_path / name).write_text(name)
    (finished / "last.pt").write_text("earlier")
    folder = RunFolder(finished, SETTINGS, 3, resume=str(tmp_path / "mine.pt"))
    assert folder.resumes_from_elsewhere
    folder.copy_checkpoint()
    assert {path.name: path.read_text() for path in finished.glob("*.pt")} == {
        "last.pt": "mine.pt",
        "best.pt": "best.pt",
        "last.prev.pt": "earlier",
    }


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_nothing_is_copied_without_a_named_checkpoint(resume, finished):
    folder = RunFolder(finished, SETTINGS, 3, resume=resume)
    folder.copy_checkpoint()
    assert not folder.resumes_from_elsewhere
    assert not list(finished.glob("*.pt"))


def test_a_run_that_torchrun_restarts_continues(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert effective_resume("never") == "never"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert effective_resume("never") == "auto"


def test_the_hint_names_the_folder(tmp_path):
    assert resume_hint(tmp_path, "auto") == f"the same command continues from {tmp_path}"
    assert resume_hint(tmp_path, "never") == f"the same command, without run.resume, continues from {tmp_path}"


def test_a_summary_of_an_older_version_has_todays_names(finished):
    assert read_summary(finished)["accuracy"] == {"simulated": {"top1": 1.0}}


@pytest.mark.parametrize(("text", "message"), [("{", "Expecting"), ("[]", "not what train.py"), ("{}", "not what")])
def test_a_summary_that_is_none_is_refused(text, message, finished):
    (finished / "summary.json").write_text(text)
    with pytest.raises(UserError, match=rf"summary.json: {message}.*run.resume=never"):
        read_summary(finished)


def test_a_single_run_and_a_sweep_do_not_share_a_folder(finished):
    check_no_sweep(finished)
    with pytest.raises(UserError, match="is a single run's"):
        check_no_single_run(finished)
    check_no_single_run(finished.parent)
    with pytest.raises(UserError, match="holds the runs of a sweep"):
        check_no_sweep(finished.parent)


def test_differences_are_named_by_dotted_key():
    there, here = {"a": {"b": 1, "c": (1, 2)}, "gone": 3}, {"a": {"b": 2, "c": [1, 2]}, "new": None}
    assert differences(there, here) == ["a.b: 1 there, 2 here", "gone: 3 there, null here"]
    assert differences(there, here, ("a",)) == ["gone: 3 there, null here"]
    assert differences({"ab": 1}, {"ab": 2}, ("a",)) == ["ab: 1 there, 2 here"], "a is not ab"


def test_other_normalization_is_another_run_unless_an_older_version_kept_none(finished):
    read = {"data": {"classes": {"0": "cat"}, "normalization": {"mean": [0.5], "std": [0.2]}}}
    other = {"data": read["data"] | {"normalization": {"mean": [0.4], "std": [0.2]}}}
    files.write_json(finished / INPUTS, read)
    assert RunFolder(finished, SETTINGS, 1, inputs=read).is_finished()
    assert not RunFolder(finished, SETTINGS, 1, inputs=other).is_finished()
    files.write_json(finished / INPUTS, {"data": {"classes": {"0": "cat"}}})
    assert RunFolder(finished, SETTINGS, 1, inputs=other).is_finished()


@pytest.mark.parametrize("inputs", [{"data": 3}, {"data": None}, {"data": ["normalization"]}, {}])
def test_inputs_that_hold_anything_are_another_runs(inputs, finished):
    files.write_json(finished / INPUTS, inputs)
    assert not RunFolder(finished, SETTINGS, 1, inputs={"data": {"classes": {"0": "cat"}}}).is_finished()
