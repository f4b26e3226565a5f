"""Sessions of ONNX Runtime and OpenVINO compute what the ONNX file says."""

import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from quant.engines import onnx_sessions
from quant.engines.onnx_sessions import onnxruntime_session, openvino_session
from tests.conftest import RUNTIMES

onnx = pytest.importorskip("onnx")
SESSIONS = {"onnxruntime": onnxruntime_session, "openvino": openvino_session}


def doubling() -> bytes:
    """images [N, 3, H, W] -> logits [N, 3, H, W], twice as large."""
    from onnx import TensorProto, helper

    shape = ["batch", 3, "height", "width"]
    given, found = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("images", "logits"))
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    node = helper.make_node("Mul", ["images", "two"], ["logits"])
    graph = helper.make_graph([node], "doubling", [given], [found], [two])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_session_computes_the_file(runtime):
    images = torch.randn(2, 3, 4, 4)
    session = SESSIONS[runtime](doubling(), images.shape, 1)
    first = session(images)
    assert torch.equal(first, 2 * images)
    assert torch.equal(session(images.contiguous(memory_format=torch.channels_last)), 2 * images), "in any layout"
    session(images + 1)
    assert torch.equal(first, 2 * images), "a later run does not overwrite it"


@pytest.mark.skipif("openvino" not in RUNTIMES, reason="openvino is not installed")
def test_an_openvino_session_is_for_one_shape():
    session = openvino_session(doubling(), torch.Size([2, 3, 4, 4]), 1)
    with pytest.raises(RuntimeError):
        session(torch.randn(1, 3, 4, 4))


@pytest.mark.skipif("onnxruntime" not in RUNTIMES, reason="onnxruntime is not installed")
def test_onnxruntime_gets_the_threads_and_the_number_of_images(monkeypatch):
    import onnxruntime

    seen, real = [], onnxruntime.InferenceSession

    def session(file, options, **keys):
        seen.append(options)
        return real(file, options, **keys)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    onnxruntime_session(doubling(), torch.Size([2, 3, 4, 4]), 3)
    assert seen[0].intra_op_num_threads == 3
    assert seen[0].log_severity_level == 3


@pytest.mark.skipif("openvino" not in RUNTIMES, reason="openvino is not installed")
def test_openvino_gets_the_threads_and_computes_in_fp32(monkeypatch):
    seen, real = [], onnx_sessions.openvino_core()

    class Core:
        read_model = real.read_model

        def compile_model(self, model, device, options):
            seen.append((device, options))
            return real.compile_model(model, device, options)

    monkeypatch.setattr(onnx_sessions, "openvino_core", Core)
    openvino_session(doubling(), torch.Size([2, 3, 4, 4]), 2)
    [(device, options)] = seen
    assert device == "CPU"
    assert options["INFERENCE_NUM_THREADS"] == 2
    assert options["INFERENCE_PRECISION_HINT"] == "f32"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_signal_reaches_its_handler_after_sessions_are_freed_in_the_order_they_were_made(runtime):
    """In a process of its own, since a signal without a stack to run on ends it."""
    code = f"""
        import faulthandler, signal, torch
        from tests.quant.engines.test_onnx_sessions import SESSIONS, doubling
        faulthandler.enable()  # which gives the main thread a signal stack
        sessions = [SESSIONS[{runtime!r}](doubling(), torch.Size([2, 3, 4, 4]), 1) for _ in range(3)]
        while sessions:
            sessions.pop(0)
        signal.signal(signal.SIGTERM, lambda number, frame: print("handled", number))
        signal.raise_signal(signal.SIGTERM)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"handled {signal.SIGTERM:d}\n"), done.stderr
