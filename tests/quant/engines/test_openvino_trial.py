"""OpenVINO's compiler may crash: in another process, and this one says so in a line."""

import pytest
import torch
from torch import nn

import quant
from quant.engines import openvino_trial
from quant.engines.base import EngineFailed
from quant.engines.onnx_sessions import openvino_session
from quant.engines.runtimes import openvino_engine
from tests.conftest import RUNTIMES
from tests.helpers import spec
from tests.quant.engines.test_onnx_sessions import doubling

pytestmark = pytest.mark.skipif("openvino" not in RUNTIMES, reason="openvino is not installed")


@pytest.fixture(autouse=True)
def fresh():
    """Processes that the other tests do not use."""
    openvino_trial.stop()
    yield
    openvino_trial.stop()


def test_one_process_tries_all_models():
    for file in (doubling(), b"no model", doubling()):
        openvino_trial.check_survived(file, [2, 3, 4, 4], 1)
    assert openvino_trial.stop() == 0


@pytest.mark.parametrize(("crash", "cause"), [("os.abort()", "SIGABRT"), ("os._exit(3)", "exit code 3")])
def test_a_crash_is_an_error_and_the_next_model_is_tried_again(crash, cause, tmp_path, monkeypatch):
    script = tmp_path / "crashes.py"
    script.write_text(f"import os, pickle, sys\npickle.load(sys.stdin.buffer)\n{crash}\n")
    with monkeypatch.context() as patched:
        patched.setattr(openvino_trial, "__file__", str(script))
        with pytest.raises(RuntimeError, match=rf"^it ends the process that compiles it \({cause}\)$"):
            openvino_session(doubling(), torch.Size([2, 3, 4, 4]), 1)
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(openvino_session(doubling(), images.shape, 1)(images), 2 * images)


def test_a_crash_costs_the_engine_its_row(tmp_path, monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    prepared, images = quant.prepare(net.eval(), spec(method="ptq")), torch.randn(4, 3, 8, 8)
    quant.calibrate(prepared, [images])
    (tmp_path / "crashes.py").write_text("import os\nos.abort()\n")
    monkeypatch.setattr(openvino_trial, "__file__", str(tmp_path / "crashes.py"))
    with pytest.raises(EngineFailed, match=r"^engines: openvino cannot run this model: it ends the process"):
        quant.convert(prepared.eval(), openvino_engine().name)(images)
