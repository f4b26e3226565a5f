"""Where does a runtime part from what an ONNX file says? The file is cut after each QuantizeLinear.

    python -m tests.onnx_cuts MODEL.onnx [SIDE]      # on photographs of this size, 32 pixels if none is given

ONNX Runtime without optimizations computes our files to the bit, so it says what is right. A cut changes what is fused
around it: an integer may be right as an output and wrong inside. What differs first is named with the operators before
it, and one of them, or how one is fused with what follows the last integers that are right, is the cause.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from quant.engines.onnx_sessions import Session, onnxruntime_session, openvino_core, openvino_model_session

OPERATORS_BEFORE = 6
"""How many operators before a difference are named."""


def openvino_session(file: bytes, shape: torch.Size, threads: int) -> Session:
    """Without the trial in a process of its own: a file that has run whole does not crash in part."""
    return openvino_model_session(openvino_core().read_model(model=file), shape, threads)


SESSIONS: dict[str, Callable[[bytes, torch.Size, int], Session]] = {
    "onnxruntime": onnxruntime_session,
    "openvino": openvino_session,
}


def differences(file: bytes, images: Tensor, runtime: str) -> Iterator[str]:
    """A line for each QuantizeLinear whose integers are not those that the file says, in the file's order."""
    model = onnx.load_from_string(file)
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    expected = as_written(model, images, names)
    for name in names:
        found = SESSIONS[runtime](cut(model, name), images.shape, 1)(images)
        off = (found.int() - expected[name].int()).abs()
        if bool(off.any()):
            yield f"{int((off > 0).sum())} of {off.numel()} are up to {int(off.max())} off: {before(model, name)}"


def as_written(model: Any, images: Tensor, names: list[str]) -> dict[str, Tensor]:
    """The integers of these tensors, computed without optimizations."""
    import onnxruntime

    whole, options = onnx.ModelProto(), onnxruntime.SessionOptions()
    whole.CopyFrom(model)
    whole.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in names)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(names, {"images": images.contiguous().numpy()})
    return dict(zip(names, map(torch.from_numpy, found), strict=True))


def cut(model: Any, name: str) -> bytes:
    """The file whose logits are the tensor of this name."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    [last] = [node for node in part.graph.node if "logits" in node.output]
    part.graph.node.remove(last)
    part.graph.node.append(helper.make_node("Identity", [name], ["logits"]))
    del part.graph.output[:]
    part.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.UINT8, None))
    return part.SerializeToString()


def before(model: Any, name: str) -> str:
    """The operators that lead to a tensor, the last one first, along their first inputs."""
    made, path = {output: node for node in model.graph.node for output in node.output}, []
    while name in made and len(path) < OPERATORS_BEFORE:
        path.append(f"{made[name].op_type} {made[name].name}")
        name = made[name].input[0]
    return ", ".join(path)


def main(path: str, side: str = "32") -> None:
    from tests.conftest import RUNTIMES, photos

    file, images = onnx.load(path).SerializeToString(), photos(16, int(side)).contiguous()
    for runtime in RUNTIMES:
        for line in differences(file, images, runtime):
            print(f"{runtime}: {line}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
