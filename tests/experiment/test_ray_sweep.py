"""A sweep on Ray ends with what a sweep in one process does, also where a machine dies."""

import json
import os
import sys

import pytest

from benchmarks import sweep_on_ray
from experiment import ray_sweep, training
from experiment.ray_sweep import Task, attempt
from experiment.settings import SweepSettings
from experiment.sweep import Ended
from utils.errors import UserError

AXES = {"run.seed": [1, 2]}


def asked(**keys) -> SweepSettings:
    return SweepSettings.model_validate(keys)


def task(folder, **more) -> Task:
    """Of a worker whose sweep is in this folder."""
    (folder / "mark").touch()
    values = json.dumps({"run": {"dir": str(folder), "name": "cell"}})
    task = Task(0, values, lambda settings: None, folder, folder / "cell", folder / "mark", threads=1)
    return Task(**(vars(task) | more))


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (AXES | {"cpus": 2}, r'^sweep.cpus is read by "ray"; sweep.on is "here"$'),
        (AXES | {"address": "auto"}, r'^sweep.address is read by "ray"; sweep.on is "here"$'),
        (AXES | {"gpus": 0.5}, r'^sweep.gpus is read by "ray"; sweep.on is "here"$'),
    ],
)
def test_keys_without_effect_are_refused(sweep, message):
    with pytest.raises(UserError, match=message):
        ray_sweep.check(asked(**sweep))
    ray_sweep.check(asked(**AXES))


def test_without_ray_a_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"^sweep.on: ray is not installed; pip install ray$"):
        ray_sweep.check(asked(on="ray", **AXES))


def test_what_ray_cannot_run_is_refused(monkeypatch):
    pytest.importorskip("ray")
    ray_sweep.check(asked(on="ray", **AXES))
    with pytest.raises(UserError, match=r"^sweep.on: nothing to run over"):
        ray_sweep.check(asked(on="ray"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^sweep.on: .* without torchrun$"):
        ray_sweep.check(asked(on="ray", **AXES))


def test_a_cluster_that_does_not_answer_is_named_at_once(tmp_path):
    pytest.importorskip("ray")
    keys = ['sweep={"run.seed":[1]}', "sweep.on=ray", "sweep.address=127.0.0.1:1", f"run.dir={tmp_path}"]
    with pytest.raises(UserError, match=r"^sweep.address: 127.0.0.1:1 does not answer"):
        training.main(keys)


def test_a_cell_that_asks_for_more_than_any_machine_has_is_refused():
    machines = [
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 1.0}},
    ]
    ray_sweep._check_resources(machines, asked(on="ray", cpus=2))
    with pytest.raises(UserError, match=r"^sweep.cpus: 3 for each run, and no machine of Ray's has more than 2$"):
        ray_sweep._check_resources(machines, asked(on="ray", cpus=3))
    with pytest.raises(UserError, match=r"^sweep.gpus: 0.5 for each run"):
        ray_sweep._check_resources(machines, asked(on="ray", gpus=0.5))


def test_a_machine_that_does_not_see_the_folder_of_the_sweep_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^run.dir: .* does not see .*; all machines of a sweep have to share it$"):
        next(attempt(task(tmp_path, mark=tmp_path / "other")))
    assert not (tmp_path / "cell").exists()


def test_a_worker_says_when_a_cell_begins_and_how_it_ended(tmp_path, monkeypatch):
    monkeypatch.chdir(os.getcwd())  # and back: a worker goes where the sweep was started
    began, ended = attempt(task(tmp_path))
    assert began.startswith("begins on ")
    assert ended == Ended(0, None)

    def fail(settings):
        raise UserError("no such thing")

    *_, ended = attempt(task(tmp_path, train=fail))
    assert ended == Ended(0, "no such thing")
    assert "UserError: no such thing" in (tmp_path / "cell" / "error.txt").read_text()


def test_a_sweep_on_two_nodes_of_which_one_is_killed_ends_like_one_in_a_process(tmp_path):
    pytest.importorskip("ray")
    said, different = sweep_on_ray.compare(tmp_path, bits=[4])
    assert different == []
    assert said.count("its worker died") == 1
    assert said.count(": finished") == 2
    logs = [path.read_text() for path in (tmp_path / "ray").glob("grid/*/run.log")]
    assert sum("continuing in epoch" in log for log in logs) == 1
