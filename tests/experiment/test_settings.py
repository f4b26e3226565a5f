"""Settings of earlier versions, and renamed keys, in every place where they are written."""

import json

import pytest

import data
import quant
from experiment import training
from experiment.settings import OPTIM_SECTIONS, RENAMED, TrainSettings, resolved, stored
from tests.conftest import spec
from utils import config
from utils.errors import UserError

OLD = {
    "float_epochs": 1,
    "step_init": "paper",
    "act_clip": 1.0,
    "weights": "sawb",
    "alpha_init": "calibration",
    "alpha_decay": 2e-4,
    "signed_edges": "clip",
    "grad_bits": 32,
    "observer": None,
    "percentile": 99.99,
    "recipe": "plain",
    "equalize": None,
    "rounding": None,
    "rounding_steps": None,
    "drop": None,
    "correct": None,
    "norm_images": 0,
    "damping": 0.0,
}
"""Keys that every quant section of format 3 has, at their defaults."""


@pytest.mark.parametrize("method", quant.METHODS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "qadamw"])
@pytest.mark.parametrize("dataset", ["digits", "cifar10", "imagefolder"])
def test_settings_of_format_3_have_the_keys_of_all_methods_optimizers_and_datasets(method, optimizer, dataset):
    observer = getattr(spec(method=method, weight_bits=4).options, "observer", None)
    old = {
        "data": {"name": dataset, "root": "datasets", "workers": 2, "on_error": "fail", "cache": "auto", "limit": 9},
        "quant": OLD | {"method": method, "weight_bits": 4, "observer": observer, "reduce_range": False},
        "optim": {"name": optimizer, "momentum": 0.9, "nesterov": True, "milestones": [0.5, 0.75], "mode": "intended"},
    }
    asked = {"data": {"name": dataset, "limit": 9}, "optim": {"name": optimizer}}
    asked["quant"] = {"method": method, "weight_bits": 4, "reduce_range": False}
    before = json.dumps(old)
    assert stored(old, "last.pt").model_dump() == resolved(TrainSettings.model_validate(asked)).model_dump()
    assert json.dumps(old) == before, "what is read stays as it is"


def test_milestones_of_format_3_count_with_schedule_step():
    found = stored({"optim": {"schedule": "step", "milestones": [0.3]}}, "last.pt")
    assert found.optim.milestones == [0.3]


def test_what_no_version_knew_is_refused_in_a_checkpoint_too():
    with pytest.raises(UserError, match=r"^last.pt: quant.weight_bit: unknown key, did you mean weight_bits\?$"):
        stored({"quant": {"weight_bit": 4}}, "last.pt")


def test_what_is_stored_is_stored_the_same_again():
    found = resolved(TrainSettings.model_validate({"quant": {"method": "ptq", "recipe": "best"}}))
    assert stored(json.loads(found.model_dump_json()), "config.json") == found


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_renamed_keys_are_keys_of_today_and_the_old_names_are_gone(old, new):
    keys = {f"quant.{key}" for kind in quant.SECTIONS.kinds.values() for key in kind.model_fields}
    assert new in keys
    assert old not in keys


def test_renamed_keys_in_a_file_on_the_command_line_and_in_a_sweep(tmp_path, capsys):
    path = tmp_path / "my.json"
    sweep = {"quant.correct": ["none", "bias"], "how": {"a": {"quant.norm_images": 9}, "b": {"quant": {"damping": 1}}}}
    path.write_text(json.dumps({"quant": {"method": "ptq", "equalize": True}, "sweep": sweep}))
    found = config.load(TrainSettings, str(path), ["quant.equalize=false", "quant.correct=norm"])
    assert (found.quant.cross_layer_equalization, found.quant.bias_correction) == (False, "norm")
    assert list(found.sweep.axes) == ["quant.bias_correction", "how"]
    assert found.sweep.axes["how"] == {
        "a": {"quant.bn_reestimation_images": 9},
        "b": {"quant": {"oscillation_dampening": 1}},
    }
    told = capsys.readouterr().err.splitlines()
    assert f"{path}: quant.equalize is now quant.cross_layer_equalization" in told
    assert "command line: quant.correct is now quant.bias_correction" in told
    assert len(told) == len(set(told)) == 6


def test_augment_was_true_or_false(tmp_path, capsys):
    path = tmp_path / "my.json"
    path.write_text('{"data": {"augment": true}, "sweep": {"data.augment": [false, "rand"]}}')
    found = config.load(TrainSettings, str(path), [])
    assert (found.data.augment, found.sweep.axes) == ("crop", {"data.augment": ["none", "rand"]})
    assert config.load(TrainSettings, str(path), ["data.augment=false"]).data.augment == "none"
    assert stored({"data": {"augment": False}}, "last.pt").data.augment == "none"
    told = capsys.readouterr().err.splitlines()
    assert f"{path}: data.augment: true is now crop" in told
    assert "command line: data.augment: false is now none" in told


def test_the_default_setting_takes_every_method_optimizer_and_dataset():
    """It sets no key that another of them would refuse."""
    for key, names in (("quant.method", quant.METHODS), ("optim.name", OPTIM_SECTIONS.kinds)):
        for name in names:
            config.load(TrainSettings, "setting/train.json", [f"{key}={name}"])
    for name in data.DATASETS:
        config.load(TrainSettings, "setting/train.json", [f"data.name={name}"])


def test_a_mistake_on_the_command_line_is_named_as_such(capsys):
    with pytest.raises(UserError, match=r"^command line: quant.step_init is read by lsq.*; quant.method is statass"):
        training.main(["quant.step_init=mse", "--print-config"])
    with pytest.raises(UserError, match=r"^command line: quant.method: unknown 'lqs'; .* \(nearest: lsq\)$"):
        training.main(["quant.method=lqs", "--print-config"])


def loaded(tmp_path, file: dict, *overrides: str) -> TrainSettings:
    (tmp_path / "mine.json").write_text(json.dumps(file))
    return config.load(TrainSettings, str(tmp_path / "mine.json"), list(overrides))


DIGITS = {"note": "of digits", "data": {"name": "digits", "image_size": 24, "batch_size": 8}}


def test_another_dataset_on_the_command_line_takes_its_own_image_size(tmp_path, capsys):
    found = loaded(tmp_path, DIGITS, "data.name=fashion_mnist")
    assert (found.data.image_size, found.data.batch_size, found.note) == (28, 8, "")
    assert "data.image_size=24 of the file: for digits, not taken over" in capsys.readouterr().err
    assert loaded(tmp_path, DIGITS, "data.name=fashion_mnist", "data.image_size=40").data.image_size == 40
    assert loaded(tmp_path, DIGITS, "data.name=digits").data.image_size == 24
    assert capsys.readouterr().err == "", "as asked for, or as in the file"


def test_a_root_alone_that_holds_folders_of_classes_means_imagefolder(tmp_path, capsys):
    for part in ("train", "val"):
        (tmp_path / "photos" / part / "cat").mkdir(parents=True)
    root = f"data.root={tmp_path / 'photos'}"
    found = loaded(tmp_path, DIGITS, root).data
    assert (found.name, found.image_size, found.root) == ("imagefolder", 224, str(tmp_path / "photos"))
    assert f"{root} holds folders of classes: data.name=imagefolder" in capsys.readouterr().err
    cifar = {"data": {"name": "cifar10", "root": "there"}}
    assert loaded(tmp_path, cifar, root).data.name == "imagefolder"
    assert loaded(tmp_path, cifar, f"data.root={tmp_path}").data.name == "cifar10", "it holds none"
    assert loaded(tmp_path, {"data": {"name": "imagenet"}}, root).data.name == "imagenet"
    with pytest.raises(UserError, match=r"data.root is read by cifar10, .*; data.name is digits"):
        loaded(tmp_path, DIGITS, f"data.root={tmp_path}")
