"""Exports the integer model as a LiteRT (TensorFlow Lite) file, of one image at a time.

NAME.tflite       the integer model; its metadata has what NAME.json has of the images and classes
Beside it is what export/program.py says.
"""

import json
from pathlib import Path
from typing import Any

from torch import fx

from quant.engines.base import IntegerModel
from quant.engines.litert import LitertEngine, missing
from quant.export.program import check_beside, converted, write_beside
from utils.errors import UserError
from utils.files import write_atomically


def check_litert(key: str) -> None:
    """Raise UserError, naming the setting `key`, if the packages that write .tflite files are not installed."""
    if missing():
        raise UserError(f"{key}: a .tflite file {missing()}")


def export_litert(
    prepared: fx.GraphModule, file: Path, image_size: int, info: dict[str, Any], channels: int = 3
) -> IntegerModel:
    """Write the integer model of a prepared one as a LiteRT file, with what it takes and an example beside it.

    Input: a normalized float32 image [1, image_size, image_size, channels]. Output: float32 logits [1, classes].
    Returns the integer model. Raises UserError if a quantizer has not been calibrated, or for an operator that LiteRT
    does not have.
    """
    check_beside(file)
    model, written = converted(prepared, LitertEngine(), image_size, channels)
    program = written.program({"model.json": json.dumps(info)})
    write_atomically(file, lambda part: part.write_bytes(program))
    write_beside(file, info, model, "tflite_example.py")
    return model
