"""Third-party runtimes compute what is simulated."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
import quant
from quant.engines import runtimes
from quant.engines.convert import convert
from tests.conftest import RUNTIMES, photos
from tests.helpers import SMALL, build, calibrated, size_of

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
from tests.onnx_cuts import differences

VNNI = torch.cpu._is_vnni_supported()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_trained_net_predicts_what_it_simulates(runtime, net, simulated, digits32):
    _, images, labels = digits32
    logits = quant.convert(net, runtime)(images)
    assert (logits.argmax(1) == labels).float().mean() >= 0.95
    if runtime == "onnxruntime" or VNNI:
        assert torch.equal(logits, simulated)
    else:  # these weights are not within +-63
        assert (logits.argmax(1) == simulated.argmax(1)).float().mean() >= 0.97
        assert (logits - simulated).norm() < 0.05 * simulated.norm()


ONE_OF_EACH = [(name, form) for name, form in SMALL if not re.search("net(32|34|44|56)$|_x[12]|projected", name)]
"""Without those that only have more or wider layers of the same kinds."""


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("name", "form"), ONE_OF_EACH)
def test_the_zoo_has_the_logits_that_it_simulates(runtime, name, form):
    images = photos(8, size_of(name, form))
    prepared = calibrated(build(name, form), images)
    model = quant.convert(prepared, runtime)
    with torch.inference_mode():
        if not torch.equal(model(images), prepared(images)):
            file = model.files[images.shape[1:]]
            pytest.fail(next(differences(file, images, runtime), "its integers are right, its logits are not"))


class Strange(nn.Module):
    """A sigmoid gate, tokens, an average that is not global, a part in float, and a product with a number."""

    def __init__(self):
        super().__init__()
        self.a, self.gate, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(8, 8, 2, 2)
        self.tokens, self.fc = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = F.hardswish(self.a(x * 0.5))
        x = F.avg_pool2d(x * torch.sigmoid(self.gate(x)), 2)
        x = self.up(x)[:, :, ::2]
        return self.fc(F.gelu(self.tokens(x.flatten(2).transpose(1, 2))).mean(1))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_kind_of_operator_is_what_is_simulated(runtime):
    images = photos(4, 16)
    prepared = calibrated(Strange(), images)
    with torch.inference_mode():
        simulated = prepared(images)
    off = (quant.convert(prepared, runtime)(images) - simulated).abs().max()
    assert off <= (0 if VNNI else 0.03) * simulated.abs().max()  # of a transposed convolution in float


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_any_number_of_images(runtime):
    images = photos(5, 32)
    model = quant.convert(calibrated(models.build("resnet20", 10, 32, {}), images), runtime)
    whole = model(images)
    assert torch.allclose(torch.cat([model(images[:2]), model(images[2:])]), whole, atol=1e-5)


def test_a_missing_package_is_named_in_a_line(monkeypatch):
    import importlib.util

    from utils.errors import UserError

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    quant.engine.cache_clear()
    with pytest.raises(UserError, match=r"^engines: onnxruntime needs onnxscript: pip install -r requirements-deploy"):
        quant.engine("onnxruntime", "engines")
    quant.engine.cache_clear()


def test_sessions_are_kept_for_the_last_shapes(monkeypatch):
    """One for each shape and number of threads; one file for each size of images."""
    opened, written = [], []

    def open_session(file, shape, threads):
        opened.append((file, tuple(shape), threads))
        return lambda images: images

    class Model:
        def SerializeToString(self):
            return b"file %d" % len(written)

    def onnx_model(graph, images):
        written.append(tuple(images.shape))
        return Model()

    monkeypatch.setattr(runtimes, "onnx_model", onnx_model)
    images = photos(4, 16)
    prepared = calibrated(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), images)
    model = convert(prepared, runtimes.Runtime("any", open_session))
    for count in (1, 2, 1, 2):
        x = torch.zeros(count, 3, 16, 16)
        assert model(x) is x
        assert model.compile_for(x)(x) is x
    threads = torch.get_num_threads()
    assert opened == [(b"file 1", (1, 3, 16, 16), threads), (b"file 1", (2, 3, 16, 16), threads)]
    assert written == [(2, 3, 16, 16)]
    for count in range(3, runtimes.MAX_SESSIONS + 2):
        model(torch.zeros(count, 3, 16, 16))
    assert len(model.sessions) == runtimes.MAX_SESSIONS
    assert len(opened) == runtimes.MAX_SESSIONS + 1
    model(torch.zeros(2, 3, 16, 16))
    assert len(opened) == runtimes.MAX_SESSIONS + 1
    model(torch.zeros(1, 3, 16, 16))
    assert len(opened) == runtimes.MAX_SESSIONS + 2, "the oldest was dropped"
    model(torch.zeros(1, 3, 8, 8))
    assert written == [(2, 3, 16, 16), (2, 3, 8, 8)]


@pytest.mark.parametrize("fails", ["opening", "running"])
def test_what_a_package_throws_becomes_a_line(fails):
    def run(images):
        raise ValueError("no such shape\nat some place of its own")

    def open_session(file, shape, threads):
        return run(None) if fails == "opening" else run

    prepared = calibrated(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), photos(4, 16))
    model = convert(prepared, runtimes.Runtime("any", open_session))
    for use in (model, model.compile_for):
        with pytest.raises(quant.EngineFailed, match=r"^engines: any cannot run this model: no such shape$"):
            use(torch.zeros(1, 3, 16, 16))
