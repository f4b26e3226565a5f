"""The folder of a run: where it is, and what is in it before the first step."""

import json

import pytest

from experiment.run_folder import open_folder, run_folder
from experiment.settings import TrainSettings, resolved
from utils.errors import UserError


def settings(tmp_path, **sections) -> TrainSettings:
    run = {"dir": str(tmp_path), "name": "mine", "epochs": 2} | sections.pop("run", {})
    return resolved(TrainSettings.model_validate({"run": run} | sections))


def test_it_is_made_from_the_settings(tmp_path):
    found = run_folder(settings(tmp_path))
    assert (found.path, found.epochs, found.inputs, found.filled_in) == (tmp_path / "mine", 2, None, ())
    chosen = settings(tmp_path, model={"weights": "a.pt"}, quant={"method": "ptq", "layers": "auto", "target_mb": 1})
    assert run_folder(chosen, {"model.weights": "digest"}).inputs == {"model.weights": "digest"}
    assert run_folder(chosen).filled_in == ("quant.layers",)


def test_a_new_folder_has_the_settings_and_the_environment(tmp_path):
    mine = settings(tmp_path)
    start = open_folder(run_folder(mine), mine)
    assert (start.finished, start.state) == (False, None)
    assert json.loads((tmp_path / "mine" / "config.json").read_text()) == mine.model_dump(mode="json")
    assert json.loads((tmp_path / "mine" / "environment.json").read_text())["engine"] == mine.quant.engine


def test_a_finished_run_is_left_as_it_is(tmp_path):
    mine = settings(tmp_path)
    open_folder(run_folder(mine), mine)
    (tmp_path / "mine" / "summary.json").write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").iterdir()}
    assert open_folder(run_folder(mine), mine).finished
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").iterdir()} == before


def test_other_settings_move_a_finished_run_aside(tmp_path, capsys):
    mine, other = settings(tmp_path), settings(tmp_path, optim={"lr": 0.123})
    open_folder(run_folder(mine), mine)
    (tmp_path / "mine" / "summary.json").write_text("{}")
    assert not open_folder(run_folder(other), other).finished
    assert (tmp_path / "mine.1" / "summary.json").is_file()
    assert not (tmp_path / "mine" / "summary.json").exists()
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["optim"]["lr"] == 0.123


def test_the_folder_of_a_sweep_is_refused(tmp_path):
    mine = settings(tmp_path)
    (tmp_path / "mine" / "cell").mkdir(parents=True)
    (tmp_path / "mine" / "cell" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="mine holds the runs of a sweep"):
        open_folder(run_folder(mine), mine)
