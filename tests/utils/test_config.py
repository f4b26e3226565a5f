"""Settings are typed, frozen and closed; a mistake is one line with file, key, and the nearest right thing."""

import json
from pathlib import Path

import pydantic
import pytest

from experiment.settings import EvaluateSettings, LatencySettings, TrainSettings
from utils import config
from utils.errors import UserError

SETTINGS = sorted(Path("setting").glob("*.json"))


def write(tmp_path, **values) -> str:
    path = tmp_path / "my.json"
    path.write_text(json.dumps(values))
    return str(path)


@pytest.mark.parametrize("path", SETTINGS, ids=str)
def test_every_setting_in_the_repository_loads_and_says_what_it_does(path):
    kinds = {"evaluate": EvaluateSettings, "latency": LatencySettings}
    assert config.load(kinds.get(path.stem, TrainSettings), str(path), []).note


def test_overrides_are_json_or_text(tmp_path):
    settings = config.load(
        TrainSettings,
        write(tmp_path, quant={"act_bits": 8}),
        ["quant.act_bits=4", "run.name=trial", 'run.engines=["x86"]', "data.limit=null", "model.form=cifar"],
    )
    assert settings.quant.act_bits == 4
    assert settings.run.name == "trial"
    assert settings.run.engines == ["x86"]
    assert settings.data.limit is None
    assert settings.model.options == {"form": "cifar"}


def test_a_tilde_is_the_users_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    given = ["run.dir=~/runs", "data.name=cifar10", "data.root=~/images", "model.weights=~/last.pt"]
    settings = config.load(TrainSettings, write(tmp_path), given)
    assert settings.run.dir == "/home/somebody/runs"
    assert settings.data.root == "/home/somebody/images"
    assert settings.model.weights == "/home/somebody/last.pt"


def test_settings_are_frozen(tmp_path):
    settings = config.load(TrainSettings, write(tmp_path), [])
    with pytest.raises(pydantic.ValidationError):
        settings.quant.act_bits = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quant": {"weight_bit": 4}}, r"my.json: quant.weight_bit: unknown key, did you mean weight_bits\?$"),
        ({"qaunt": {}}, r"my.json: qaunt: unknown key, did you mean quant\?$"),
        ({"quant": {"weight_bits": 9}}, r"my.json: quant.weight_bits: 9 bits; choose 1..8, or 32 for float, not 9$"),
        ({"quant": {"weight_bits": "4"}}, r'my.json: quant.weight_bits: input should be a valid integer, not "4"$'),
        ({"quant": {"granularity": "per_chanel"}}, r"my.json: quant.granularity: input .*\(nearest: per_channel\)$"),
        ({"quant": {"first_last_bits": "all"}}, r"my.json: quant.first_last_bits: .*$"),
        ({"quant": {"method": "lqs"}}, r"my.json: quant.method: unknown 'lqs'; choose from .* \(nearest: lsq\)$"),
        ({"quant": {"method": ["lsq"]}}, r"my.json: quant.method: unknown .*$"),
        ({"quant": 4}, r"my.json: quant: input should be an object, not 4$"),
        (
            {"quant": {"layers": {"fc": {"weight_bit": 4}}}},
            r"quant.layers.fc.weight_bit: unknown .* mean weight_bits\?$",
        ),
        ({"data": {"batch_size": 0}}, r"my.json: data.batch_size: input should be greater than or equal to 1, not 0$"),
        ({"run": {"epochs": 2.5}}, r"my.json: run.epochs: input should be a valid integer"),
    ],
)
def test_mistakes_in_a_file(tmp_path, values, message):
    with pytest.raises(UserError, match=message) as caught:
        config.load(TrainSettings, write(tmp_path, **values), [])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("quant.weight_bit=4", r"command line: quant.weight_bit: unknown key, did you mean weight_bits\?"),
        ("epochs", r"command line: 'epochs' is not of the form key=value, or section.key=value"),
        ("note.x=1", r"command line: note.x: note is not a section"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        config.load(TrainSettings, write(tmp_path, note="n"), [override])


def test_a_forgotten_equals_sign(tmp_path):
    with pytest.raises(UserError, match=r"'data.root' is not of the form .*, did you mean data.root=my/photos\?$"):
        config.load(TrainSettings, write(tmp_path), ["data.root", "my/photos"])


def test_two_texts_without_a_key(tmp_path):
    assert config.load(EvaluateSettings, write(tmp_path), ["runs/a"]).checkpoint == "runs/a"
    with pytest.raises(UserError, match=r"^command line: runs/a and photo.jpg: one alone is the checkpoint; name the "):
        config.load(EvaluateSettings, write(tmp_path), ["runs/a", "photo.jpg"])


def test_texts_without_a_key_are_the_models_to_time(tmp_path):
    found = config.load(LatencySettings, write(tmp_path), ["runs/a", "resnet18", "threads=1"])
    assert (found.models, found.threads) == (["runs/a", "resnet18"], 1)


def test_a_list_needs_no_brackets_on_the_command_line(tmp_path):
    texts = ["engines=x86,fbgemm", "models=resnet18", "threads=1,2", "batch_size=8"]
    found = config.load(LatencySettings, write(tmp_path), texts)
    assert (found.engines, found.models) == (["x86", "fbgemm"], ["resnet18"])
    assert (found.threads, found.batch_size) == ([1, 2], 8)
    assert config.load(TrainSettings, write(tmp_path), ["run.engines=x86"]).run.engines == ["x86"]
    path = config.load(EvaluateSettings, write(tmp_path), ["checkpoint=runs/a,b"]).checkpoint
    assert path == "runs/a,b", "no list is asked for"
    with pytest.raises(UserError, match=r"my.json: engines: input should be a valid array"):
        config.load(LatencySettings, write(tmp_path, engines="x86"), [])
    with pytest.raises(UserError, match=r'^command line: threads.*: input should be .*, not "one,two"$'):
        config.load(LatencySettings, write(tmp_path), ["threads=one,two"])
    own = config.load(TrainSettings, write(tmp_path), ["data.name=imagefolder", "data.root=x", "data.mean=0.5,0.4,0.3"])
    assert own.data.mean == [0.5, 0.4, 0.3], "in a section of several kinds"
    stepped = config.load(TrainSettings, write(tmp_path), ["optim.schedule=step", "optim.milestones=0.5,0.8"])
    assert stepped.optim.milestones == [0.5, 0.8]
    with pytest.raises(UserError, match=r"^command line: optim.milestones.*: input should be less than 1, not 2$"):
        config.load(TrainSettings, write(tmp_path), ["optim.schedule=step", "optim.milestones=0.5,2"])
    assert config.load(EvaluateSettings, write(tmp_path), ["compare=1,2"]).compare == ["1", "2"]


@pytest.mark.parametrize("texts", [["resnet18", "models=mobilenet_v2"], ["models=mobilenet_v2", "resnet18"]])
def test_models_are_named_in_one_way(texts, tmp_path):
    with pytest.raises(UserError, match=r"^command line: .*: name all models in one way$"):
        config.load(LatencySettings, write(tmp_path), texts)


def test_a_mistake_in_a_list_of_the_command_line_is_blamed_on_it():
    with (
        pytest.raises(UserError, match=r"^command line: models: runs/b.pt: no such checkpoint$"),
        config.blame("file.json", {"models": "runs/a.pt,runs/b.pt"}),
    ):
        raise UserError("runs/b.pt: no such checkpoint")


def test_missing_and_broken_files(tmp_path):
    path = write(tmp_path)
    with pytest.raises(UserError, match=r"mi.json: No such file or directory, did you mean .*my.json\?"):
        config.load(TrainSettings, str(tmp_path / "mi.json"), [])
    Path(path).write_text("{,}")
    with pytest.raises(UserError, match=r"my.json: not JSON: "):
        config.load(TrainSettings, path, [])
    Path(path).write_text("[]")
    with pytest.raises(UserError, match=r"my.json: not a JSON object"):
        config.load(TrainSettings, path, [])


def test_renamed_keys_are_taken_in_every_form_they_are_written_in():
    values = {"a": {"old": 1}, "a.old": 2, "b": {"old": 3}, "old": 4}
    assert config.rename(values, {"a.old": "a.new"}) == ["a.old is now a.new"] * 2
    assert values == {"a": {"new": 1}, "a.new": 2, "b": {"old": 3}, "old": 4}
    with pytest.raises(UserError, match=r"^a.old is now a.new, and the setting has both$"):
        config.rename({"a": {"old": 1, "new": 2}}, {"a.old": "a.new"})


def test_varying_lays_values_over_those_that_were_set_alone(tmp_path):
    """Defaults of the method that was named before do not stand in the way of another."""
    settings = config.load(TrainSettings, write(tmp_path, quant={"method": "lsq", "weight_bits": 4}), [])
    varied = config.vary(settings, {"quant.method": "pact"}, "cell")
    assert (varied.quant.method, varied.quant.weight_bits) == ("pact", 4)
    chosen = config.vary(settings, {"quant.step_init": "mse"}, "cell")
    with pytest.raises(UserError, match=r"^cell: quant.step_init is read by lsq.*; quant.method is pact$"):
        config.vary(chosen, {"quant.method": "pact"}, "cell")
