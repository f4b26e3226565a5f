"""A checkpoint's settings build its model again, float or prepared, with the same outputs."""

from types import SimpleNamespace

import pytest
import torch

import models
import quant
from experiment.rebuild import read_settings, rebuild
from experiment.settings import TrainSettings, resolved
from utils.errors import UserError
from utils.runs import checkpoint

DATASET = SimpleNamespace(classes=["a", "b", "c"], mean=(0.5,) * 3, std=(0.25,) * 3)
SETTINGS = resolved(TrainSettings.model_validate({"data": {"image_size": 16}, "model": {"name": "resnet20"}}))


def trust(name: str) -> None:
    """Every function may be called."""


def saved(path, prepared: bool) -> tuple[torch.nn.Module, str]:
    model = models.build("resnet20", 3, 16, {})
    if prepared:
        model = quant.prepare(model, quant.resolve(SETTINGS.quant))
    model(torch.randn(8, 3, 16, 16))
    torch.save(checkpoint.pack(model, SETTINGS.model_dump(mode="json"), DATASET, prepared, 1), path / "last.pt")
    return model.eval(), str(path / "last.pt")


@pytest.mark.parametrize("prepared", [False, True])
def test_the_model_computes_what_it_computed(prepared, tmp_path):
    model, path = saved(tmp_path, prepared)
    found, state, trained = rebuild(path, trust)
    images = torch.randn(2, 3, 16, 16)
    assert quant.is_prepared(found) == prepared
    assert torch.equal(found.eval()(images), model(images))
    assert (state["classes"], trained) == (["a", "b", "c"], SETTINGS)


def test_scales_of_zero_are_named(tmp_path, capsys):
    _, path = saved(tmp_path, True)
    state = torch.load(path)
    for end in ("low", "high"):
        state["model"][f"layer1.0.conv1.weight_quantizer.{end}"].zero_()
    torch.save(state, path)
    capsys.readouterr()
    rebuild(path, trust)
    said = "1 quantizer(s) with scales of zero or below, which count as 2^-24: layer1.0.conv1.weight_quantizer, ...\n"
    assert capsys.readouterr().out == f"{path}: {said}"


def test_a_model_that_is_not_trusted_is_not_built(tmp_path, monkeypatch):
    _, path = saved(tmp_path, prepared=False)
    monkeypatch.setattr(models, "build", lambda *_: pytest.fail("it was built"))

    def refuse(name: str) -> None:
        raise UserError(f"{name} is not trusted")

    with pytest.raises(UserError, match="resnet20 is not trusted"):
        rebuild(path, refuse)


def test_settings_that_are_not_valid_are_refused_with_the_file():
    values = SETTINGS.model_dump(mode="json")
    assert read_settings({"settings": values}, "last.pt") == SETTINGS
    values["run"]["epochs"] = -1
    with pytest.raises(UserError, match=r"^last.pt: run.epochs: "):
        read_settings({"settings": values}, "last.pt")


@pytest.mark.parametrize(("mean", "resize"), [([0.48, 0.45, 0.4], 96), ([0.485, 0.456, 0.406], None)])
def test_images_that_an_earlier_version_kept_in_memory_are_made_as_it_made_them(mean, resize):
    """Resized to image_size, and normalized by their own statistics; files were normalized by ImageNet's."""
    values = {"data": {"name": "imagefolder", "image_size": 96}}
    state = {"settings": values, "mean": mean, "std": [0.2] * 3}
    found = read_settings(state, "last.pt").data
    assert (found.resize, found.mean) == (resize, mean if resize else None)
