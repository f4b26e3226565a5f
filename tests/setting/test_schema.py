"""The JSON Schemas beside the settings are those of the types, and editors that use them see what the scripts see."""

import functools
import json
from pathlib import Path

import jsonschema
import pytest

import models
import quant
from experiment import check as checks
from experiment import sweep
from experiment.check import check
from experiment.settings import TrainSettings
from setting.schema.generate import FOLDER, schemas
from utils import config
from utils.errors import UserError
from utils.runs import checkpoint, tensor_file
from utils.training.schedule import SCHEDULES

SETTINGS = sorted([*Path("setting").glob("*.json"), *Path("setting/tables").glob("*.json")])


@functools.cache
def validator(name: str) -> jsonschema.protocols.Validator:
    """What validates against a schema of setting/schema. The schema itself is checked once, which takes longer."""
    schema = json.loads((FOLDER / f"{name}.json").read_text())
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


def test_schemas_are_current():
    written = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
    assert written == json.loads(json.dumps(schemas())), "run: make schema"


@pytest.mark.parametrize("path", SETTINGS, ids=str)
def test_every_setting_names_its_schema_and_fits_it(path):
    values = json.loads(path.read_text())
    schema = (path.parent / values["$schema"]).resolve()
    assert schema.parent == FOLDER.resolve()
    validator(schema.stem).validate(values)


@pytest.mark.parametrize(
    "mistake",
    [
        {"quant": {"weight_bit": 4}},
        {"quant": {"weight_bits": 9}},
        {"quant": {"method": "lqs"}},
        {"data": {"name": "cifar"}},
        {"model": {"name": "resnet21"}},
        {"quant": {"layers": {"fc": "flaot"}}},
    ],
)
def test_a_schema_refuses_what_the_script_refuses(mistake):
    with pytest.raises(jsonschema.ValidationError):
        validator("train").validate(mistake)


@pytest.mark.parametrize("optimizer", [{}, {"name": "adam"}, {"name": "qsgd"}], ids=str)
@pytest.mark.parametrize("milestones", [None, [0.5]])
@pytest.mark.parametrize("schedule", [{}, *({"schedule": name} for name in SCHEDULES)], ids=str)
def test_a_schema_takes_milestones_where_the_script_does(schedule, milestones, optimizer):
    values = {"optim": optimizer | schedule | {"milestones": milestones}}
    if milestones is None or schedule == {"schedule": "step"}:
        check(config.validate(TrainSettings, values, ""), "mine")
        validator("train").validate(values)
        return
    with pytest.raises(UserError, match=r"^optim.milestones is read by schedule step"):
        check(config.validate(TrainSettings, values, ""), "mine")
    with pytest.raises(jsonschema.ValidationError):
        validator("train").validate(values)


def test_a_schema_takes_layers_by_name():
    validator("train").validate({"quant": {"layers": {"fc": "float", "layer1.*": {"weight_bits": 4}}}})


def test_a_schema_takes_other_libraries_models():
    validator("train").validate({"model": {"name": "torchvision:resnet50", "width": 3}})


def once(check_model):
    """Builds and traces a model once, and not again for each cell that asks the same of it."""
    seen = set()

    def check_new(asked, image_size, channels, spec):
        key = repr((asked, image_size, channels, spec.layers, spec.chooses_layers, spec.method))
        if key not in seen:
            check_model(asked, image_size, channels, spec)
        seen.add(key)

    return check_new


@pytest.mark.parametrize(
    "path", [path for path in SETTINGS if "train.json" in json.loads(path.read_text())["$schema"]], ids=str
)
def test_every_run_and_every_cell_of_a_sweep_passes_the_scripts_own_check(path, monkeypatch):
    named = []  # the checkpoints it starts from, which need not be there: another setting trains them
    monkeypatch.setattr(tensor_file, "check_exists", named.append)
    monkeypatch.setattr(checkpoint, "check_weights", lambda model, path, name: named.append(path))
    monkeypatch.setattr(checks, "with_weights_file", lambda model, d: model)
    monkeypatch.setattr(checks, "as_weights", lambda d, model: d)
    monkeypatch.setattr(checks, "check_model", once(checks.check_model))
    settings = config.load(TrainSettings, str(path), [])
    assert settings.note
    runs = [own for _, own in sweep.runs(settings, sweep.cells(settings.sweep.axes), check)] or [
        check(settings, path.stem)
    ]
    assert all(one.quant.method in quant.METHODS for one in runs)
    trained_by = {Path(file).parts[1] for file in named if file != models.PRETRAINED}
    assert trained_by <= {setting.stem for setting in SETTINGS}
