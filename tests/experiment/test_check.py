"""What cannot work is refused before any data is read, and defaults are filled in."""

import pytest

import models
from experiment.check import check, check_engines, check_model
from experiment.settings import ModelSettings, TrainSettings
from tests.conftest import spec
from utils.config import validate
from utils.errors import UserError


def settings(**sections) -> TrainSettings:
    return validate(TrainSettings, sections, "")


def test_name_engines_and_the_quant_section_are_filled_in():
    found = check(settings(), "mine")
    assert found.run.name == "mine"
    assert found.run.engines == ["fbgemm"]
    assert found.quant.observer == "moving_average"
    assert check(settings(run={"engines": []}), "mine").run.engines == [], "none were asked for"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"name": "cifar"}}, "data.name: unknown 'cifar'"),
        ({"optim": {"name": "sdg"}}, "optim.name: unknown 'sdg'"),
        ({"run": {"device": "tpu"}}, "run.device: 'tpu' is not available here"),
        ({"run": {"engines": ["fbgem"]}}, "run.engines: unknown 'fbgem'"),
        ({"quant": {"engine": "fbgem"}}, "quant.engine: unknown 'fbgem'"),
        ({"optim": {"milestones": [0.5]}}, "optim.milestones is read by schedule step; optim.schedule is cosine"),
        ({"quant": {"method": "lsq", "calibration_images": 9}}, "quant.calibration_images: lsq finds its ranges"),
        ({"quant": {"method": "ptq"}, "optim": {"learned_lr": 0.1}}, "optim.learned_lr: quantizers of ptq"),
        ({"data": {"name": "no_such:thing"}}, "data.name: cannot import no_such"),
        ({"quant": {"method": "ptq"}, "optim": {"name": "qsgd"}}, "optim.name: qsgd adds its noise"),
        ({"quant": {"method": "ptq"}, "optim": {"average": 0.9}, "run": {"epochs": 0}}, "optim.average: run.epochs=0"),
    ],
)
def test_a_mistake_is_named_by_its_key(sections, message):
    with pytest.raises(UserError, match=f"^{message}"):
        check(settings(**sections), "mine")


def test_engines_of_a_float_run_are_not_looked_at():
    assert check(settings(quant={"method": "float"}, run={"engines": ["fbgem"]}), "mine").run.engines == ["fbgem"]
    with pytest.raises(UserError, match=r"^engines: unknown 'fbgem'"):
        check_engines(["fbgem"], "engines")


def test_a_model_is_built_only_where_building_it_can_show_a_mistake(monkeypatch):
    built = []
    build = models.build
    monkeypatch.setattr(models, "build", lambda *arguments: built.append(arguments) or build(*arguments))
    check_model(ModelSettings(name="resnet20"), 32, spec(method="lsq"))
    assert not built
    check_model(ModelSettings(name="resnet20"), 32, spec(method="lsq", layers={"fc": "float"}))
    assert built
    with pytest.raises(UserError, match=r"quant.layers: 'fx' matches no layer"):
        check_model(ModelSettings(name="resnet20"), 32, spec(method="lsq", layers={"fx": "float"}))
