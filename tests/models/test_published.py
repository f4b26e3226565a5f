"""How images of published weights are made: torchvision's by the file's contents, timm's by the model's name."""

import pytest
import timm
from torchvision import models as torchvision_models

from models import preprocessing, published

ALL = [
    w
    for name in torchvision_models.list_models(module=torchvision_models)
    for w in torchvision_models.get_model_weights(name)
]


def test_every_file_of_torchvision_is_known_by_its_contents(monkeypatch):
    for weights in ALL:
        beginning = published.HASH.search(weights.url)[1]
        monkeypatch.setattr(published, "_sha256", lambda path, beginning=beginning: beginning.ljust(64, "0"))
        found, made = preprocessing("resnet18", "renamed.pth"), weights.transforms()
        assert (found["image_size"], found["resize"]) == (made.crop_size[0], made.resize_size[0]), weights
        assert found["interpolation"] == made.interpolation.value


def test_a_file_of_nobody_is_not_known(tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"trained at home")
    assert preprocessing("torchvision:resnet18", str(tmp_path / "mine.pth")) is None


@pytest.mark.parametrize("name", ["mobilenetv2_100", "vit_base_patch16_siglip_224", "tf_efficientnet_lite0"])
def test_timms_models_are_fed_as_timm_does(name):
    from timm.data import resolve_data_config

    found = preprocessing(f"timm:{name}", "anything.pth")
    theirs = resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    assert found["image_size"] == theirs["input_size"][-1]
    assert found["resize"] == int(theirs["input_size"][-1] / theirs["crop_pct"])
    keys = {"mean": "mean", "std": "std", "interpolation": "interpolation", "crop": "crop_mode"}
    for ours, key in keys.items():
        assert found[ours] == (list(theirs[key]) if ours in ("mean", "std") else theirs[key])
