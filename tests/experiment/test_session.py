"""The steps of a run, each by itself."""

import json

import torch

import data
import models
import quant
from experiment import datasets, session
from experiment.check import check
from experiment.session import Session, has_other_classes, start_from_weights, worth_compiling
from experiment.settings import ModelSettings, TrainSettings
from tests.nets import plain
from utils.distributed import Processes
from utils.runs import tensor_file
from utils.runs.checkpoint import Loaded

ALONE = Processes(0, 1, torch.device("cpu"))
SMALL = {"data": {"image_size": 16, "limit": 128, "batch_size": 64}, "model": {"name": "tests.nets:plain"}}


def a_session(folder, state: dict | None = None, **sections) -> Session:
    found = check(TrainSettings.model_validate(SMALL | sections), "mine")
    return Session(found, folder, ALONE, datasets.load(found.data), state=state)


def test_long_quantized_trainings_are_compiled():
    def asked(**run) -> TrainSettings:
        return TrainSettings.model_validate(
            {"quant": {"method": run.pop("method", "lsq")}, "run": {"epochs": 20} | run}
        )

    digits, cifar = (10_138_240, 1437), (40_551_040, 50_000)
    assert not worth_compiling(asked(), *digits)
    assert worth_compiling(asked(), *cifar)
    assert worth_compiling(asked(compile="always"), *digits)
    assert not worth_compiling(asked(compile="never"), *cifar)
    assert not worth_compiling(asked(method="float", compile="always"), *cifar)
    assert not worth_compiling(asked(method="ptq", compile="always"), *cifar)


def test_a_session_loads_builds_and_trains_step_by_step(tmp_path):
    run = a_session(tmp_path, run={"epochs": 1}, quant={"method": "lsq", "weight_bits": 4, "act_bits": 4})
    run.build_model()
    assert run.size["params"] == sum(p.numel() for p in run.model.parameters())
    assert not run.settings.ends_in_float
    assert run.val_batches() is None
    run.fit()
    assert quant.is_prepared(run.model)
    assert not run.model.training
    assert tensor_file.load(str(tmp_path / "last.pt"))["epoch"] == 1
    prepared = run.model
    run.quantize_after_training()
    assert run.model is prepared, "it is quantized already"


def test_a_float_net_is_quantized_after_training_and_measured(tmp_path):
    run = a_session(tmp_path, run={"epochs": 0, "engines": ["reference"]}, quant={"method": "ptq"})
    run.run()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["accuracy"]) == {"float", "simulated", "reference"}
    assert (summary["weight_bits"], summary["checkpoint"], summary["params"]) == (8, "last.pt", run.size["params"])


def test_layers_chosen_before_an_interruption_are_kept(tmp_path):
    keys = {"quant": {"method": "ptq", "layers": "auto", "target_mb": 0.01}, "run": {"epochs": 1}}
    before = {"settings": {"quant": {"layers": {"0": {"weight_bits": 4}}}}}
    run = a_session(tmp_path, before, **keys)
    run.restore_chosen_layers()
    assert json.loads((tmp_path / "config.json").read_text())["quant"]["layers"]["0"]["weight_bits"] == 4
    assert run.quant_spec.layers["0"].weight_bits == 4


def test_a_run_continues_in_the_precision_that_it_began_with(tmp_path, monkeypatch):
    monkeypatch.setattr(session.precision, "faster", lambda *_: "fp32")
    for state, expected in ((None, "fp32"), ({"training": {"precision": "bf16"}}, "bf16")):
        run = a_session(tmp_path, state, run={"precision": "auto"})
        run.build_model()
        assert run.choose_precision() == expected


def test_a_head_of_other_classes_is_reported(tmp_path, capsys):
    torch.save(models.build("resnet20", 7, 16, {}).state_dict(), tmp_path / "seven.pth")
    start_from_weights(models.build("resnet20", 10, 16, {}), str(tmp_path / "seven.pth"), allow_new_head=True)
    assert "loaded all layers except fc, which starts from random weights" in capsys.readouterr().out


def test_a_head_of_as_many_other_classes_is_told_from_one_of_these():
    ours = ModelSettings(name="resnet18", weights="ours.pt")
    ten = [f"class{i}" for i in range(10)]
    assert not has_other_classes(Loaded((), (), ten), ours, ten)
    assert has_other_classes(Loaded((), (), ten[::-1]), ours, ten)
    assert not has_other_classes(Loaded(("fc",), (), ten[::-1]), ours, ten), "that one starts at random"


def test_published_weights_are_of_imagenets_classes(monkeypatch):
    names, anything = data.imagenet_names(), Loaded((), (), None)
    published = ModelSettings(name="resnet18", weights="resnet18-f37072fd.pth")
    monkeypatch.setattr(models, "preprocessing", lambda *_: {"image_size": 224})
    assert not has_other_classes(anything, published, names)
    assert has_other_classes(anything, published, sorted(str(i) for i in range(1000)))
    monkeypatch.setattr(models, "preprocessing", lambda *_: None)
    assert not has_other_classes(anything, published, sorted(str(i) for i in range(1000))), "nobody says of what"


def test_what_was_done_to_the_weights_of_another_program_is_said_in_one_line(tmp_path, capsys):
    model = models.build("resnet20", 10, 16, {})
    state = {f"module.{name}": value.half() for name, value in model.state_dict().items() if "num_b" not in name}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "theirs.pth")
    start_from_weights(models.build("resnet20", 10, 16, {}), str(tmp_path / "theirs.pth"), allow_new_head=False)
    line = "theirs.pth: its state_dict; without module in names; counters as built: 19; float16 as float32\n"
    assert capsys.readouterr().out.endswith(line)


def test_it_is_said_where_weights_do_not_say_how_their_images_were_made(tmp_path, capsys):
    torch.save(plain(10).state_dict(), tmp_path / "theirs.pth")
    for stated in (False, True):
        data_keys = SMALL["data"] | ({"mean": [0.5] * 3, "std": [0.2] * 3} if stated else {})
        model_keys = SMALL["model"] | {"weights": str(tmp_path / "theirs.pth")}
        a_session(tmp_path, data=data_keys, model=model_keys).build_model()
        assert ("does not say how its images were made" in capsys.readouterr().out) is not stated
