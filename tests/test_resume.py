"""A run that was interrupted, however it was, ends with the bits that it would have ended with."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import models
from experiment import training
from utils.errors import UserError
from utils.runs import checkpoint, checkpointing, tensor_file
from utils.runs.folder import RunFolder, resume_hint
from utils.training import trainer

ROOT = Path(__file__).resolve().parent.parent
SHORT = ["data.image_size=16", "data.batch_size=64", "data.limit=300", "run.epochs=3", 'run.engines=["reference"]']
SHORT += ["data.val_fraction=0.2", "run.checkpoint_minutes=0.00001", "model.name=tests.nets:Residual"]
LARGE = "model.name=resnet20"
"""Whose checkpoints of 2 MB take some time to write."""
RECIPES = {
    "lsq": ["quant.method=lsq", "quant.weight_bits=4", "quant.act_bits=4"],
    "lsq, all extras": [
        "quant.method=lsq",
        "quant.weight_bits=3",
        "quant.act_bits=3",
        "quant.oscillation_dampening=0.01",
        "quant.transition_rate=true",
        "quant.bn_reestimation_images=64",
        "optim.average=0.9",
        "optim.name=adam",
        "optim.lr=0.01",
    ],
    "pact, bf16": ["quant.method=pact", "quant.weight_bits=4", "quant.act_bits=4", "run.precision=bf16"],
    "dorefa": ["quant.method=dorefa", "quant.weight_bits=4", "quant.grad_bits=6", "quant.transition_rate=0.01"],
    "statassist": ["quant.method=statassist", "optim.name=qsgd"],
    "ptq": ["quant.method=ptq", "optim.name=adam"],
    "lsq, all augmentations": [
        "quant.method=lsq",
        "data.augment=auto",
        "data.random_erasing=0.5",
        "data.mixup=0.2",
        "data.cutmix=1",
        "data.sampling=balanced",
        "optim.label_smoothing=0.1",
    ],
    "float": [LARGE, "quant.method=float", "optim.name=rmsprop"],
}


class Killed(BaseException):
    """What no handler of the program catches."""


def killed_at(monkeypatch, save: int):
    """Let the program die right after so many saves of last.pt."""
    count, real = [0], checkpointing.CheckpointSaver.save

    def keep(self, *arguments):
        message = real(self, *arguments)
        count[0] += 1
        if count[0] == save:
            raise Killed
        return message

    monkeypatch.setattr(checkpointing.CheckpointSaver, "save", keep)


def start(folder: Path, *arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "train.py", *SHORT, f"run.dir={folder}", "run.name=run", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.005)


def outcome(folder: Path) -> dict:
    """All that a run ends with, but for its times."""
    found = {name: tensor_file.load(str(folder / name)) for name in ("last.pt", "best.pt") if (folder / name).exists()}
    numbers = {f"{name}: {key}": value for name in found for key, value in flat(found[name]).items()}
    rows = [line.split(",")[:-2] for line in (folder / "metrics.csv").read_text().splitlines()]
    return numbers | {"rows": rows, "accuracy": json.loads((folder / "summary.json").read_text())["accuracy"]}


def flat(value, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {path: tensor for key, item in items for path, tensor in flat(item, f"{name}.{key}").items()}


def same(one: dict, other: dict) -> bool:
    assert one.keys() == other.keys()
    assert len(one) > 100, "there is something to compare"
    return all(torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k] for k, v in one.items())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_dies_ends_as_if_it_had_not(recipe, tmp_path, monkeypatch, capsys):
    """It dies in the first epoch, at the end of one and in the middle of one, and is started again each time."""
    command = [*SHORT, *RECIPES[recipe], f"run.dir={tmp_path}"]
    training.main([*command, "run.name=whole"])
    for save in (2, 3, 3):  # four steps and an end in each epoch
        with monkeypatch.context() as patch:
            killed_at(patch, save)
            with pytest.raises(Killed):
                training.main([*command, "run.name=killed"])
    capsys.readouterr()
    training.main([*command, "run.name=killed"])
    assert "continuing in epoch 2, step 3" in capsys.readouterr().out
    assert same(outcome(tmp_path / "whole"), outcome(tmp_path / "killed"))


def test_the_same_seed_gives_the_same_bits(tmp_path):
    for name in ("one", "two"):
        training.main([*SHORT, f"run.dir={tmp_path}", f"run.name={name}"])
    assert same(outcome(tmp_path / "one"), outcome(tmp_path / "two"))
    training.main([*SHORT, f"run.dir={tmp_path}", "run.name=three", "run.seed=2"])
    assert not same(outcome(tmp_path / "one"), outcome(tmp_path / "three"))


def test_deterministic_algorithms_train(tmp_path):
    try:
        training.main([*SHORT, "run.epochs=2", f"run.dir={tmp_path}", "run.name=run", "run.deterministic=true"])
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(number, code, tmp_path):
    process = start(tmp_path, "run.epochs=500", "run.checkpoint_minutes=10", "data.val_fraction=0")
    wait_for(tmp_path / "run" / "metrics.csv", process)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == code
    assert said.count("\n") == 1
    assert f"the same command continues from {tmp_path / 'run'}\n" in said
    state = tensor_file.load(str(tmp_path / "run" / "last.pt"))
    assert state["epoch"] >= 1, "the epoch that was seen is saved"
    if "stopped after step" in said:
        assert f"stopped after step {state['training']['step']} of epoch {state['epoch'] + 1};" in said


def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path):
    process = start(tmp_path, LARGE, "run.epochs=50")
    wait_for(tmp_path / "run" / "last.pt", process)
    while not [*(tmp_path / "run").glob(".last.*.pt")] and process.poll() is None:
        time.sleep(0.0005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    folder = RunFolder(tmp_path / "run", _setting_of(tmp_path / "run"), epochs=50)
    assert folder.find_start().state is not None


def _setting_of(folder: Path) -> dict:
    newest = next(path for name in ("last.pt", "last.prev.pt") if (path := folder / name).exists())
    return checkpoint.load(str(newest))["settings"]


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A run that died after three saves, and its command."""
    command = [*SHORT, f"run.dir={tmp_path}", "run.name=run"]
    with monkeypatch.context() as patch:
        killed_at(patch, 3)
        with pytest.raises(Killed):
            training.main(command)
    return tmp_path / "run", command


def test_a_ptq_run_that_dies_while_it_measures_ends_with_the_same_net(tmp_path):
    """Its last.pt is the calibrated net by then, and not to be averaged or measured anew."""
    command = [*SHORT, "quant.method=ptq", "quant.observer=mse", "quant.weight_bits=4", "optim.average=0.9"]
    command += [f"run.dir={tmp_path}", "run.name=run"]
    training.main(command)
    expected = outcome(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    training.main(command)
    assert same(outcome(tmp_path / "run"), expected)


def test_what_goes_on_with_a_run_that_began_anew(interrupted, monkeypatch, capsys):
    folder, command = interrupted
    with monkeypatch.context() as patch:
        killed_at(patch, 2)
        with pytest.raises(Killed):
            training.main([*command, "run.resume=never"])
    assert resume_hint(folder, "never") == f"the same command, without run.resume, continues from {folder}"
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        killed_at(patch, 1)
        with pytest.raises(Killed):
            training.main([*command, "run.resume=never"])
    assert "continuing in epoch 1, step 2" in capsys.readouterr().out, "torchrun starts the same run again"
    training.main(command)
    assert "continuing in epoch 1, step 3" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, interrupted, capsys):
    folder, command = interrupted
    last = folder / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"truncated": content[: len(content) // 2], "flipped": content, "empty": b""}
    if damage == "gone":
        last.unlink()
    else:
        last.write_bytes(damaged[damage])
    capsys.readouterr()
    training.main(command)
    out = capsys.readouterr().out
    assert "continuing in epoch 1, step 2" in out, "the third save said step 3"
    assert ("continuing from last.prev.pt" in out) == (damage != "gone")


def test_where_no_checkpoint_is_whole_nothing_is_overwritten(interrupted):
    folder, command = interrupted
    for name in ("last.pt", "last.prev.pt"):
        (folder / name).write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"last.pt: not a readable checkpoint .*; run.resume=never starts from scratch"):
        training.main(command)
    assert (folder / "last.pt").read_bytes() == b"rubbish"
    training.main([*command, "run.resume=never"])
    assert (folder.with_name("run.1") / "last.pt").read_bytes() == b"rubbish", "kept beside the new run"


def test_another_setting_is_refused_by_its_keys(interrupted):
    folder, command = interrupted
    before = (folder / "last.pt").read_bytes()
    with pytest.raises(UserError, match=r"optim.lr: 0.1 there, 0.2 here\): run.name=.* run.resume=never") as refused:
        training.main([*command, "optim.lr=0.2"])
    assert "\n" not in str(refused.value)
    assert (folder / "last.pt").read_bytes() == before


def test_weights_alone_do_not_take_the_place_of_a_training(tmp_path, monkeypatch):
    """best.pt has no optimizer to go on with; last.pt beside it has."""
    command = [*SHORT, f"run.dir={tmp_path}", "run.name=run"]
    killed_at(monkeypatch, 12)  # in the third epoch; the first is in float, and not to choose from
    with pytest.raises(Killed):
        training.main(command)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pt")}
    assert before.keys() == {"best.pt", "last.pt", "last.prev.pt"}
    with pytest.raises(UserError, match=r"best\.pt holds no training to continue; to start from its weights set"):
        training.main([*command, f"run.resume={tmp_path / 'run' / 'best.pt'}"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pt")} == before


@pytest.mark.parametrize("cure", [{"workers": 0}, {"on_error": "skip"}])
def test_what_a_message_tells_to_do_does_not_make_it_another_run(cure, interrupted, tmp_path):
    folder, _ = interrupted
    state = tensor_file.load(str(folder / "last.pt"))
    of_files = {"name": "imagefolder", "root": "mine", "workers": 2, "on_error": "fail"}
    there = state["settings"] | {"data": of_files}
    tensor_file.save(tmp_path / "last.pt", state | {"settings": there})
    assert RunFolder(tmp_path, there | {"data": of_files | cure}, epochs=3).find_start().state is not None
    with pytest.raises(UserError, match=r"has other settings \(data.root: \"mine\" there, \"yours\" here\)"):
        RunFolder(tmp_path, there | {"data": of_files | cure | {"root": "yours"}}, epochs=3).find_start()


@pytest.mark.parametrize("setting", ["optim.lr=0.1", "optim.lr=0.2"], ids=["the same", "another"])
def test_a_run_that_was_taken_away_all_but_its_best_is_finished_all_the_same(setting, tmp_path, capsys):
    command = [*SHORT, "run.epochs=1", f"run.dir={tmp_path}", "run.name=run"]
    training.main(command)
    (tmp_path / "run" / "last.pt").unlink()
    before = (tmp_path / "run" / "best.pt").read_bytes()
    capsys.readouterr()
    training.main([*command, setting])
    same_one = setting == "optim.lr=0.1"
    assert ("is finished" in capsys.readouterr().out) == same_one
    assert (tmp_path / ("run" if same_one else "run.1") / "best.pt").read_bytes() == before


def test_a_finished_run_stays_and_another_setting_makes_room(tmp_path, capsys):
    command = [*SHORT, "run.epochs=1", f"run.dir={tmp_path}", "run.name=run"]
    training.main(command)
    before = (tmp_path / "run" / "last.pt").read_bytes()
    capsys.readouterr()
    training.main(command)
    out = capsys.readouterr().out
    assert "is finished; run.resume=never" in out
    assert "simulated" in out
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    training.main([*command, "optim.lr=0.2"])
    assert (tmp_path / "run.1" / "last.pt").read_bytes() == before
    assert (tmp_path / "run" / "last.pt").read_bytes() != before


def test_a_run_goes_on_from_a_checkpoint_elsewhere(interrupted, capsys):
    folder, command = interrupted
    early = folder.with_name("early.pt")
    early.write_bytes((folder / "last.pt").read_bytes())
    training.main(command)
    capsys.readouterr()
    training.main([*command[:-1], "run.name=other", f"run.resume={early}"])
    assert "continuing in epoch 1, step 3" in capsys.readouterr().out
    assert tensor_file.load(str(folder.with_name("other") / "last.pt"))["epoch"] == 3
    assert same(outcome(folder.with_name("other")), outcome(folder))


def test_a_finished_run_whose_folder_was_renamed_is_finished_there(tmp_path, capsys):
    command = [*SHORT, "run.epochs=1", f"run.dir={tmp_path}"]
    training.main([*command, "run.name=run"])
    (tmp_path / "run").rename(tmp_path / "other")
    training.main([*command, "run.name=other"])
    assert f"{tmp_path / 'other'} is finished" in capsys.readouterr().out


def test_a_finished_run_that_is_asked_for_another_engine_is_measured_not_trained(tmp_path, capsys):
    command = [*SHORT, "run.epochs=1", f"run.dir={tmp_path}", "run.name=run"]
    training.main(command)
    before = outcome(tmp_path / "run")
    capsys.readouterr()
    training.main([*command, 'run.engines=["reference","fbgemm"]'])
    assert "epoch 1/1" not in capsys.readouterr().out
    after = outcome(tmp_path / "run")
    assert after["accuracy"].pop("fbgemm") == before["accuracy"]["reference"]
    assert same(after, before)


def test_a_checkpoint_from_elsewhere_does_not_take_the_place_of_a_run(interrupted, tmp_path, capsys):
    folder, command = interrupted
    other = folder.with_name("other")
    with pytest.MonkeyPatch.context() as patch:
        killed_at(patch, 2)
        with pytest.raises(Killed):
            training.main([*command[:-1], "run.name=other"])
    before = (other / "last.pt").read_bytes()
    training.main([*command[:-1], "run.name=other", f"run.resume={folder / 'last.pt'}"])
    assert (tmp_path / "other.1" / "last.pt").read_bytes() == before


@pytest.mark.parametrize("saved", [None, {"log": 3}, {"log": {"rows": []}, "optimizer": {}, "step": 1, "score": []}])
def test_a_checkpoint_without_its_training_is_refused_in_a_line(saved, interrupted, tmp_path):
    folder, command = interrupted
    state = tensor_file.load(str(folder / "last.pt")) | {"training": saved}
    tensor_file.save(tmp_path / "odd.pt", state)
    with pytest.raises(UserError, match=r"holds no training to continue") as refused:
        training.main([*command[:-1], "run.name=other", f"run.resume={tmp_path / 'odd.pt'}"])
    assert "\n" not in str(refused.value)


def test_two_runs_in_one_folder_are_one_too_many(tmp_path):
    first = start(tmp_path, "run.epochs=500")
    wait_for(tmp_path / "run" / "last.pt", first)
    first.send_signal(signal.SIGSTOP)  # it need not train on to be there
    second = start(tmp_path, "run.epochs=500")
    _, said = second.communicate()
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert said == f"run.name: another train.py is writing to {tmp_path / 'run'}; choose another name\n"


def test_a_file_size_limit_does_not_end_the_run(tmp_path):
    """The system refuses to write files above 1 MB, as a quota would; last.pt has 2."""
    limit = 2**20
    process = start(tmp_path, LARGE, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    out, said = process.communicate()
    assert "last.pt could not be saved (File too large); the run goes on" in out
    assert "ended: " in (tmp_path / "run" / "run.log").read_text().splitlines()[-1]
    assert "epoch 3/3" in out
    assert process.returncode == 2, "in the end there is no checkpoint"
    assert said.count("\n") == 1


def test_a_full_disk_leaves_the_checkpoint_of_before(tmp_path):
    """On a file system of 3 MB there is room for one last.pt of 2, and not for the next beside it."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("may not mount a file system here")
    try:
        out, _ = start(small, LARGE, "data.val_fraction=0").communicate()
        assert "last.pt could not be saved (No space left on device); the run goes on" in out
        state = tensor_file.load(str(small / "run" / "last.pt"))
        assert state["training"]["step"] == 1, "the first is whole"
        assert not [*(small / "run").glob(".last.*")], "and nothing half-written is left"
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_loss_that_is_not_finite_names_the_first_layer(tmp_path, monkeypatch):
    """And the last good checkpoint stays."""
    command = [*SHORT, LARGE, "quant.method=float", f"run.dir={tmp_path}", "run.name=run"]

    def broken(self, at, *others):
        message = real(self, at, *others)
        with torch.no_grad():
            named[0].weight[0] = torch.nan
        return message

    real, build, named = checkpointing.CheckpointSaver.save, models.build, []

    def remembered(*arguments):
        model = build(*arguments)
        named[:] = [model.layer2[0].conv1]
        return model

    monkeypatch.setattr(models, "build", remembered)
    monkeypatch.setattr(checkpointing.CheckpointSaver, "save", broken)
    with pytest.raises(UserError, match=r"nan in epoch 1, step 2 of 4; .*: layer2.0.conv1, whose weights are"):
        training.main(command)
    assert tensor_file.load(str(tmp_path / "run" / "last.pt"))["training"]["step"] == 1


def test_a_run_that_diverges_in_its_last_step_keeps_what_was_saved_before(tmp_path, monkeypatch):
    step = trainer.Trainer._step

    def poisoned(self, loss):
        step(self, loss)
        if self.done > 1.7:  # of two epochs of four steps
            with torch.no_grad():
                next(self.model.parameters())[0] = torch.nan

    monkeypatch.setattr(trainer.Trainer, "_step", poisoned)
    with pytest.raises(UserError, match=r"is not finite .1 epochs are done.: .*; what was saved is from before"):
        training.main([*SHORT, "run.epochs=2", f"run.dir={tmp_path}", "run.name=run", "quant.method=float"])
    saved = tensor_file.load(str(tmp_path / "run" / "last.pt"))
    assert all(bool(value.isfinite().all()) for value in saved["model"].values())
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_continued_run_says_how_long_what_is_left_takes(tmp_path, monkeypatch, capsys):
    command = [*SHORT, "run.checkpoint_minutes=10", f"run.dir={tmp_path}", "run.name=run", "quant.method=float"]
    with monkeypatch.context() as patch:
        killed_at(patch, 1)
        with pytest.raises(Killed):
            training.main(command)
    assert "3 epochs of 4 steps: about " in capsys.readouterr().out
    training.main(command)
    assert "2 epochs of 4 steps: about " in capsys.readouterr().out
