"""Exports the integer model as an ExecuTorch program, of one image at a time.

NAME.pte          the integer model, all of it run by XNNPACK; beside it what export/program.py says
"""

from pathlib import Path
from typing import Any

from torch import fx

from quant.engines.base import IntegerModel
from quant.engines.executorch import XnnpackEngine, missing
from quant.export.program import check_beside, converted, write_beside
from utils.errors import UserError
from utils.files import write_atomically


def check_executorch(key: str) -> None:
    """Raise UserError, naming the setting `key`, if the packages that write .pte files are not installed."""
    if missing():
        raise UserError(f"{key}: a .pte file {missing()}")


def export_executorch(
    prepared: fx.GraphModule, file: Path, image_size: int, info: dict[str, Any], channels: int = 3
) -> IntegerModel:
    """Write the integer model of a prepared one as an ExecuTorch program, with what it takes and an example beside it.

    Input: a normalized float32 image [1, channels, image_size, image_size]. Output: float32 logits [1, classes].
    Returns the integer model. Raises UserError if a quantizer has not been calibrated, or for an operator that XNNPACK
    does not have.
    """
    check_beside(file)
    model, written = converted(prepared, XnnpackEngine(), image_size, channels)
    program = written.program()
    write_atomically(file, lambda part: part.write_bytes(program))
    write_beside(file, info, model, "pte_example.py")
    return model
