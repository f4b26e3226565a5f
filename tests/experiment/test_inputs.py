"""A run knows what it read: with other images or checkpoints it is another run, wherever these are."""

import json
import os
import shutil

import pytest

from experiment import evaluation, training
from tests.data.conftest import folder as folder_of_images  # noqa: F401
from tests.test_resume import Killed, killed_at
from utils.distributed import Processes
from utils.errors import UserError
from utils.runs import tensor_file

COMMAND = ["data.name=imagefolder", "data.image_size=16", "data.batch_size=6", "model.name=tests.nets:plain"]
COMMAND += ["quant.method=ptq", "run.epochs=2", 'run.engines=["reference"]', "run.name=run"]
COMMAND += ["run.checkpoint_minutes=0.00001", "data.workers=0"]


@pytest.fixture
def images(folder_of_images):  # noqa: F811
    return folder_of_images


@pytest.fixture
def command(images, tmp_path_factory):
    return [*COMMAND, f"data.root={images}", f"run.dir={tmp_path_factory.mktemp('runs')}"]


def run_of(command: list[str]):
    return os.path.join(command[-1].partition("=")[2], "run")


def contents(command: list[str]) -> bytes:
    with open(f"{run_of(command)}/last.pt", "rb") as file:
        return file.read()


def interrupt(command: list[str], monkeypatch) -> None:
    with monkeypatch.context() as patch:
        killed_at(patch, 2)
        with pytest.raises(Killed):
            training.main(command)


def rename_a_class(images) -> None:
    for part in ("train", "test"):
        (images / part / "cat").rename(images / part / "zebra")


def test_an_interrupted_run_refuses_images_with_other_labels(images, command, monkeypatch):
    interrupt(command, monkeypatch)
    before = contents(command)
    rename_a_class(images)
    with pytest.raises(UserError, match=r'other inputs .data.classes.0: "cat" there, "dog" here;.*run.resume=never'):
        training.main(command)
    assert contents(command) == before


def test_an_interrupted_run_continues_where_the_folder_moved(images, command, monkeypatch, tmp_path_factory, capsys):
    interrupt(command, monkeypatch)
    moved = shutil.move(images, tmp_path_factory.mktemp("elsewhere") / "images")
    training.main([*command[:-2], f"data.root={moved}", command[-1]])
    assert "continuing in epoch" in capsys.readouterr().out


def test_a_finished_run_that_was_copied_is_finished_and_one_of_other_images_is_not(images, command, capsys):
    training.main(command)
    folder = run_of(command)
    for name in os.listdir(folder):
        os.utime(os.path.join(folder, name), (1, 1))
    training.main(command)
    assert "is finished" in capsys.readouterr().out
    rename_a_class(images)
    training.main(command)
    assert 'run.1 now: it has other inputs (data.classes.0: "cat" there, "dog" here' in capsys.readouterr().out


def test_a_finished_run_is_trained_again_where_its_weights_are_others(command, tmp_path, capsys):
    training.main(command)
    weights = tmp_path / "weights.pt"
    shutil.copy(f"{run_of(command)}/last.pt", weights)
    again = [*command, "run.name=tuned", f"model.weights={weights}"]
    training.main(again)
    os.utime(weights, None)
    training.main(again)
    assert "tuned is finished" in capsys.readouterr().out
    training.main([*command, "run.resume=never", "run.seed=5"])
    shutil.copy(f"{run_of(command)}/last.pt", weights)
    training.main(again)
    assert "other inputs (model.weights: " in capsys.readouterr().out


MISTAKES = {
    "no images": (["data.root=nowhere"], "data.root"),
    "a batch of one": (["data.batch_size=1"], "data.batch_size"),
    "too few images": (["data.limit=1"], "of 1 images leaves none to train on"),
    "weights of other classes": (["model.weights={seven}", "run.epochs=0"], "not weights of this model"),
    "a teacher of other classes": (["quant.method=lsq", "quant.teacher={seven}"], "2 classes .* trained on 10"),
    "no weights": (["model.weights=nowhere.pt"], "nowhere.pt"),
}


@pytest.fixture(scope="module")
def of_ten_classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ten")
    keys = ["data.limit=64", "data.image_size=16", "model.name=tests.nets:plain", "quant.method=float"]
    training.main([*keys, "run.epochs=1", f"run.dir={folder}", "run.name=ten"])
    return folder / "ten" / "last.pt"


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_what_can_be_refused_is_refused_before_the_folder_is_touched(mistake, command, of_ten_classes, capsys):
    training.main(command)
    folder = run_of(command)
    before = {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)}
    keys, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message):
        training.main([*command, *(key.format(seven=of_ten_classes) for key in keys)])
    assert {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)} == before
    assert os.listdir(os.path.dirname(folder)).count("run.1") == 0


def test_evaluation_says_that_the_test_images_are_others(images, command, capsys):
    training.main(command)
    checkpoint = [f"checkpoint={run_of(command)}/last.pt", 'engines=["reference"]', "trust=true"]
    capsys.readouterr()
    evaluation.main(checkpoint)
    assert "not the test images" not in capsys.readouterr().out
    next((images / "test" / "dog").iterdir()).unlink()
    evaluation.main(checkpoint)
    said = capsys.readouterr().out
    assert "data.root: not the test images of the run: test.images.1 dog: 2 there, 1 here" in said


def test_the_cells_of_a_sweep_know_their_images(images, command, capsys):
    sweep = [*command, 'sweep={"optim.lr": [0.1, 0.2]}']
    training.main(sweep)
    training.main(sweep)
    assert capsys.readouterr().out.count("finished before") == 2
    next((images / "train" / "dog").iterdir()).unlink()
    training.main(sweep)
    said = capsys.readouterr().out
    assert said.count("other inputs (data.training.images.1 dog: 6 there, 5 here") == 2


def test_inputs_are_kept_beside_the_settings(command):
    training.main(command)
    with open(f"{run_of(command)}/inputs.json", encoding="utf-8") as file:
        found = json.load(file)
    assert found == tensor_file.load(f"{run_of(command)}/last.pt")["inputs"]
    assert found["data"]["classes"] == {"0": "cat", "1": "dog"}
    assert (found["model.weights"], found["quant.teacher"]) == (None, None)


def test_processes_that_see_different_images_say_so(command, monkeypatch):
    """Here one process, which hears other inputs from the first."""
    heard = {"data": "of another machine"}
    monkeypatch.setattr(Processes, "broadcast_object", lambda self, value: heard if "data" in value else value)
    with pytest.raises(UserError, match=r"data.root: the processes see different images or checkpoints"):
        training.main(command)
    assert not os.path.exists(run_of(command))
