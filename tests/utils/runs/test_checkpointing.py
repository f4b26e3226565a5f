"""When a run saves, and what it does when the disk is full."""

import errno

import pytest
import torch
from torch import nn

from utils.distributed import Processes
from utils.errors import UserError
from utils.runs import checkpointing, tensor_file
from utils.runs.checkpointing import CheckpointSaver, Position, resume
from utils.runs.log import RunLog

ALONE = Processes(0, 1, torch.device("cpu"))


def saver(tmp_path, minutes: float = 10) -> CheckpointSaver:
    return CheckpointSaver(
        tmp_path, lambda model, epoch, training: {"epoch": epoch, "training": training}, minutes, "hint", ALONE
    )


@pytest.fixture
def parts(tmp_path):
    model = nn.Linear(2, 2)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), RunLog(tmp_path, 3)


def test_a_save_is_due_after_so_many_minutes(tmp_path):
    assert not saver(tmp_path, minutes=1).is_due()
    assert saver(tmp_path, minutes=0).is_due()


def test_the_message_tells_where_the_run_stopped_and_how_it_continues(tmp_path, parts):
    found = saver(tmp_path)
    assert found.save(Position(1, 5), *parts) == "stopped after step 5 of epoch 2; hint"
    found.save(Position(1, 6), *parts)
    saved = [tensor_file.load(str(tmp_path / name))["training"]["step"] for name in ("last.pt", "last.prev.pt")]
    assert saved == [6, 5]


def test_a_checkpoint_that_could_not_be_saved_is_saved_in_the_end(tmp_path, parts, monkeypatch, capsys):
    found = saver(tmp_path)
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(checkpointing.tensor_file, "save", full)
        assert "(which is not on disk)" in found.save(Position(1, 5), *parts)
        assert not found.save_best(1, parts[0], parts[2])
        with pytest.raises(OSError, match="No space left"):
            found.save_unsaved()
    assert "could not be saved (No space left on device); the run goes on" in capsys.readouterr().out
    found.save_unsaved()
    assert tensor_file.load(str(tmp_path / "last.pt"))["training"]["step"] == 5


def test_a_run_without_a_checkpoint_starts_at_the_start(parts):
    model, optimizer, log = parts
    assert resume(None, model, optimizer, 3, log, ALONE) == Position()


def test_a_run_continues_at_the_step_of_its_checkpoint(parts, capsys):
    model, optimizer, log = parts
    training = {"log": log.state(), "optimizer": optimizer.state_dict(), "step": 4, "score": [8, 2, 6, 1.5]}
    found = resume({"epoch": 1, "model": model.state_dict(), "training": training}, model, optimizer, 3, log, ALONE)
    assert (found.epoch, found.step, found.score.images, found.ended) == (1, 4, 8, False)
    assert "continuing in epoch 2, step 4" in capsys.readouterr().out


def test_a_trained_model_without_its_optimizer_is_final(parts):
    model, optimizer, log = parts
    state = {"epoch": 3, "model": model.state_dict(), "training": {"log": log.state()}}
    assert resume(state, model, optimizer, 3, log, ALONE).ended
    with pytest.raises(UserError, match="holds no training to continue"):
        resume(state | {"epoch": 2}, model, optimizer, 3, log, ALONE)


def test_a_best_that_is_missing_is_forgotten(parts, capsys):
    model, optimizer, log = parts
    state = {"epoch": 3, "model": model.state_dict(), "training": {"log": log.state() | {"best": 90.0}}}
    resume(state, model, optimizer, 3, log, ALONE)
    assert log.best is None
    assert "best.pt is missing" in capsys.readouterr().out
