"""The JSON Schemas beside the settings are those of the types, and editors that use them see what the scripts see."""

import json
from pathlib import Path

import jsonschema
import pytest

from setting.schema.generate import FOLDER, schemas

SETTINGS = sorted(Path("setting").glob("*.json"))


def test_schemas_are_current():
    written = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
    assert written == json.loads(json.dumps(schemas())), "run: make schema"


@pytest.mark.parametrize("path", SETTINGS, ids=str)
def test_every_setting_names_its_schema_and_fits_it(path):
    values = json.loads(path.read_text())
    jsonschema.validate(values, json.loads((path.parent / values["$schema"]).read_text()))


@pytest.mark.parametrize(
    "mistake",
    [
        {"quant": {"weight_bit": 4}},
        {"quant": {"weight_bits": 9}},
        {"quant": {"method": "lqs"}},
        {"data": {"name": "cifar"}},
        {"model": {"name": "resnet21"}},
    ],
)
def test_a_schema_refuses_what_the_script_refuses(mistake):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(mistake, schemas()["train"])


def test_a_schema_takes_other_libraries_models():
    jsonschema.validate({"model": {"name": "torchvision:resnet50", "width": 3}}, schemas()["train"])
