"""Datasets that a setting names as package.module:function, and the keys that each dataset reads."""

import json
import sys

import pytest

import data
from experiment import evaluation, training
from utils import config
from utils.errors import UserError

SQUARES = "tests.data.example:squares"
MODULE = """
import torch
import data

def nothing(image_size, limit, train):
    return 5

def broken(image_size, limit, train):
    raise ValueError("no such thing")

def small(image_size, limit, train):
    images = data.Images(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    return data.Dataset(images, images, ["a"], (0.5,) * 3, (0.5,) * 3, False)

def test_alone(image_size, limit, train):
    images = data.Images(torch.zeros(4, image_size, image_size, 3, dtype=torch.uint8), torch.zeros(4).long())
    return data.Dataset(None, images, ["a"], (0.5,) * 3, (0.5,) * 3, False)
"""


def section(**keys) -> data.DataSettings:
    return config.validate_section("data", data.SECTIONS, keys)


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    sys.modules.pop("my_data", None)


def test_further_keys_go_to_the_function():
    dataset = data.load(section(name=SQUARES, image_size=16, limit=10, side=6))
    assert (len(dataset.train), len(dataset.test), dataset.classes) == (10, 64, ["left", "right"])
    assert int(dataset.train.pixels[0].sum()) == 255 * 3 * 6 * 6
    assert data.load(section(name=SQUARES), train=False).train is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "my_data:nothin"}, r"^data.name: my_data has no function 'nothin', did you mean nothing\?$"),
        ({"name": "my_datum:nothing"}, "^data.name: cannot import my_datum: No module named 'my_datum'$"),
        ({"name": "my_data:nothing"}, "^data.name: my_data:nothing returned a int, not a data.Dataset$"),
        ({"name": "my_data:broken"}, "cannot be called with image_size=32, limit=None, train=True: no such thing$"),
        ({"name": "my_data:nothing", "side": 2}, "cannot be called with .*side=2: .*unexpected keyword argument"),
        (
            {"name": "my_data:small"},
            r"^data.name: my_data:small returned pixels uint8 \[4, 8, 8, 3\], not uint8",
        ),
        ({"name": "my_data:test_alone"}, "^data.name: my_data:test_alone returned no training images for train=True$"),
    ],
)
def test_refusals_are_one_line(own, keys, message):
    with pytest.raises(UserError, match=message) as refused:
        data.load(section(**keys))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", data.DATASETS)
def test_keys_that_a_dataset_does_not_read_are_refused(name):
    own = data.SECTIONS.kinds[name].model_fields
    assert all(field.description for field in own.values())
    for key in {"root", "workers", "on_error", "cache"} - set(own):
        readers = ", ".join(data.SECTIONS.readers(key))
        with pytest.raises(UserError, match=rf"^data.{key} is read by {readers}; data.name is {name}$"):
            section(name=name, **{key: None})


def test_another_dataset_takes_over_the_keys_that_it_reads():
    before = section(name="imagefolder", root="mine", cache="never", image_size=16)
    assert data.with_overrides(before, {"name": "cifar10"}) == section(name="cifar10", root="mine", image_size=16)
    assert data.with_overrides(before, {"name": "digits", "limit": 3}) == section(name="digits", image_size=16, limit=3)
    assert data.with_overrides(before, {"cache": "always"}).cache == "always"
    with pytest.raises(UserError, match=r"^data.cache is read by imagefolder; data.name is digits$"):
        data.with_overrides(before, {"name": "digits", "cache": "always"})


def test_a_checkpoint_calls_a_function_only_if_it_is_the_users(own):
    data.check_trusted("digits", trust=False)
    data.check_trusted("my_data:nothing", trust=False)
    data.check_trusted("os:system", trust=True)
    data.check_trusted("os:system", trust="os:system")
    with pytest.raises(UserError, match="the checkpoint would call os:system as its dataset"):
        data.check_trusted("os:system", trust="os:popen")
    for name in ("os:system", "torch.hub:load", "utils.files:locked"):
        with pytest.raises(UserError, match=rf"^the checkpoint would call {name} as its dataset; set trust=true"):
            data.check_trusted(name, trust=False)


def test_ones_own_dataset_is_trained_on_and_measured_again(tmp_path):
    keys = [f"data.name={SQUARES}", "data.side=5", "data.limit=64", "data.image_size=16", "data.batch_size=32"]
    small = ["model.name=resnet20", "run.epochs=1", 'run.engines=["reference"]', "quant.float_epochs=0"]
    training.main([*keys, *small, f"run.dir={tmp_path}", "run.name=own"])
    accuracy = json.loads((tmp_path / "own" / "summary.json").read_text())["accuracy"]
    measure = [f"checkpoint={tmp_path}/own/last.pt", 'engines=["reference"]']
    with pytest.raises(UserError, match=rf"the checkpoint would call {SQUARES} as its dataset; set trust=true"):
        evaluation.main(measure)
    evaluation.main([*measure, "trust=true"])
    assert json.loads((tmp_path / "own" / "evaluation.json").read_text())["accuracy"] == accuracy
