"""What cannot work is refused before any data is read, and defaults are filled in."""

import pytest

import models
import quant
from experiment.check import check, check_engines, check_model, notices
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


@pytest.mark.parametrize(
    ("quant_keys", "epochs"), [({"method": "lsq", "weight_bits": 32, "act_bits": 32}, 1), ({"method": "lsq"}, 0)]
)
def test_optim_learned_lr_needs_quantizers_that_train(quant_keys, epochs):
    run, optim = {"epochs": epochs}, {"learned_lr": 0.1}
    with pytest.raises(UserError, match=r"^optim.learned_lr: no quantizer is trained here$"):
        check(settings(quant=quant_keys, optim=optim, run=run), "mine")
    check(settings(quant={"method": "lsq", "weight_bits": 32}, optim=optim), "mine")


def test_engines_of_a_float_run_have_to_exist_but_not_to_run_here(monkeypatch):
    absent = type("Absent", (quant.ENGINES["reference"],), {"available": lambda self: False})
    monkeypatch.setitem(quant.ENGINES, "absent", absent)
    found = check(settings(quant={"method": "float"}, run={"engines": ["absent"]}), "mine")
    assert found.run.engines == ["absent"]
    with pytest.raises(UserError, match=r"^run.engines: unknown 'fbgem'"):
        check(settings(quant={"method": "float"}, run={"engines": ["fbgem"]}), "mine")
    with pytest.raises(UserError, match=r"^run.engines: absent "):
        check(settings(run={"engines": ["absent"]}), "mine")
    with pytest.raises(UserError, match=r"^engines: unknown 'fbgem'"):
        check_engines(["fbgem"], "engines")


def test_a_model_is_built_only_where_building_it_can_show_a_mistake(monkeypatch):
    built = []
    build = models.build
    monkeypatch.setattr(models, "build", lambda *arguments: built.append(arguments) or build(*arguments))
    check_model(ModelSettings(name="resnet20"), 32, 3, spec(method="lsq"))
    assert not built
    check_model(ModelSettings(name="resnet20"), 32, 3, spec(method="lsq", layers={"fc": "float"}))
    assert built
    with pytest.raises(UserError, match=r"quant.layers: 'fx' matches no layer"):
        check_model(ModelSettings(name="resnet20"), 32, 3, spec(method="lsq", layers={"fx": "float"}))


def test_a_float_run_names_the_keys_that_it_does_not_read():
    assert notices(spec(method="float")) == []
    found = notices(spec(method="float", weight_bits=4, act_bits=8, granularity="per_tensor", reduce_range=True))
    assert found == ["quant.method=float reads none of quant.weight_bits, quant.granularity, quant.reduce_range"]
    assert notices(spec(method="lsq", weight_bits=4, reduce_range=False)) == []
    [low] = notices(spec(method="lsq", weight_bits=4, reduce_range=False), from_scratch=True)
    assert "model.weights=runs/NAME/last.pt" in low
    assert notices(spec(method="lsq", weight_bits=8, act_bits=8, reduce_range=False), from_scratch=True) == []
    assert "+-63" in notices(spec(method="lsq", reduce_range=True))[0]


def test_a_folder_that_is_not_there_is_named_before_weights_are_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "file_of", lambda name: pytest.fail("downloaded"))
    photos = {"name": "imagefolder", "root": str(tmp_path / "photos"), "image_size": 64}
    with pytest.raises(UserError, match=r"^data\.root: no folder .*/photos; expected .*/photos/<class>/<image>, or "):
        check(settings(data=photos, model={"name": "mobilenet_v2", "weights": "pretrained"}), "mine")
