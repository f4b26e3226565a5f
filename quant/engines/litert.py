"""LiteRT (TensorFlow Lite) as an engine, on the file that export=model.tflite writes.

LiteRT is optional: requirements-litert.txt.
"""

import importlib.util

import torch

from quant.engines.litert_builder import LitertBuilder
from quant.engines.litert_kernels import IN_FLOAT, LITERT, OUTSIDE, WAYS
from quant.engines.programs import ProgramEngine

PACKAGES = ("ai_edge_litert", "flatbuffers")
INSTALL = "pip install --no-deps -r requirements-litert.txt"


def missing() -> str:
    """What to install to write and run .tflite files; empty if all is there."""
    absent = [name for name in PACKAGES if not importlib.util.find_spec(name)]
    return f"needs {' and '.join(absent).replace('_', '-')}: {INSTALL}" if absent else ""


class LitertEngine(ProgramEngine):
    """LiteRT, which has XNNPACK run what that can."""

    name, builder, table = "litert", LitertBuilder, WAYS
    int8, in_float, outside = LITERT, IN_FLOAT, OUTSIDE
    layout = torch.channels_last

    def missing(self) -> str:
        return missing()
