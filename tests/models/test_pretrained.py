"""Published weights are found in their library's cache, downloaded and checked, or a line says what file goes where."""

import hashlib
from types import SimpleNamespace

import pytest
import torch
from torchvision import models as torchvision_models

import models
from utils.errors import UserError


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file on a server of ours instead of torchvision's, and an empty cache."""
    content = b"weights"
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    url = f"file://{tmp_path / name}"
    monkeypatch.setattr(
        torchvision_models, "get_model_weights", lambda name: SimpleNamespace(DEFAULT=SimpleNamespace(url=url))
    )
    return tmp_path / name


@pytest.mark.parametrize("name", ["resnet18", "torchvision:efficientnet_b0"])
def test_a_file_is_downloaded_once_into_torchs_cache(name, published, tmp_path):
    found = models.file_of(name)
    assert found == str(tmp_path / "hub" / "checkpoints" / published.name)
    published.unlink()
    assert models.file_of(name) == found


def test_a_file_of_another_checksum_is_refused(published, tmp_path):
    published.write_bytes(b"other weights")
    with pytest.raises(UserError, match=r"cannot be downloaded \(invalid hash value.*put it into .*, or name a copy"):
        models.file_of("resnet18")
    assert not [path for path in (tmp_path / "hub" / "checkpoints").iterdir() if path.suffix == ".pth"]


def test_without_a_network_a_line_says_what_goes_where(published):
    published.unlink()
    with pytest.raises(
        UserError, match=r"^model.weights=pretrained: file://.*net-.*\.pth cannot be downloaded .*; put it into"
    ):
        models.file_of("resnet18")


def test_a_file_of_timm_is_taken_from_the_hubs_cache(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda repository, file: f"{tmp_path}/{repository}/{file}"
    )
    found = models.file_of("timm:mobilenetv2_100")
    assert found == f"{tmp_path}/timm/mobilenetv2_100.ra_in1k/model.safetensors"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet20", "torchvision has no resnet20"),
        ("tests.nets:plain", "only torchvision and timm publish weights, not tests.nets:plain"),
        ("timm:nonsense", "timm publishes no weights of nonsense"),
    ],
)
def test_models_of_which_nobody_publishes_weights(name, message):
    with pytest.raises(UserError, match=f"^model.weights=pretrained: {message}"):
        models.file_of(name)


@pytest.mark.parametrize("name", [name for name, row in models.MODELS.items() if "imagenet" in row.forms])
def test_weights_of_torchvision_fit_the_imagenet_forms(name):
    """Under the names of the table, which are torchvision's."""
    if name.endswith("_relu"):
        return
    with torch.device("meta"):
        theirs = torchvision_models.get_model(name).state_dict()
        ours = models.build(name, 1000, 224, {"form": "imagenet"}).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_a_name_of_another_library_is_looked_for_there():
    with pytest.raises(UserError, match=r"did you mean torchvision:efficientnet_b0 or timm:efficientnet_b0\?$"):
        models.check("efficientnet_b0", {}, 224)
    with pytest.raises(UserError, match=r"nearest: resnet\d"):
        models.check("resnet21", {}, 32)
