"""Exports the integer model as an ExecuTorch program, of one image at a time.

NAME.pte          the integer model, all of it run by XNNPACK
NAME.json         image size, normalization, class names, and the integers: their grids and what computes each operator
NAME_example.py   asks it what it sees in pictures (export/pte_example.py, with what it imports of this repository)
"""

from pathlib import Path
from typing import Any

import torch
from torch import fx

from quant.core.grid import Grid
from quant.engines.base import IntegerModel
from quant.engines.convert import convert
from quant.engines.executorch import XnnpackEngine, XnnpackModel, missing
from quant.engines.nhwc_builder import MIDDLE
from quant.engines.qdq_operators import on_grid
from quant.export.torch_export import read, standalone
from utils.errors import UserError
from utils.files import write_atomically, write_json, write_text


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
    model = convert(prepared, XnnpackEngine())
    if not isinstance(model, XnnpackModel):
        raise TypeError(f"converted for executorch, but a {type(model).__name__}")
    program = model.file(torch.Size([1, channels, image_size, image_size]))
    write_atomically(file, lambda part: part.write_bytes(program))
    write_json(file.with_suffix(".json"), info | {"integers": contract(model)})
    write_text(file.with_name(f"{file.stem}_example.py"), example_text(f"{file.stem}_example.py"))
    return model


def contract(model: IntegerModel) -> dict[str, Any]:
    """The grids of all values by their names, as int8: value = scale (integer - zero_point); and the kernels."""
    grids = {name: grid for name, (_, grid) in model.node_map.items() if grid is not None}
    kernels = {name: converted.kernel for name, converted in model.layers.items()} | model.operators
    return {"values": {name: _in_int8(grid) for name, grid in grids.items()}, "kernels": kernels}


def _in_int8(grid: Grid) -> dict[str, float | int]:
    scale, zero_point, lo, hi = on_grid(grid, grid.q_min, grid.q_max)
    return {"scale": scale, "zero_point": zero_point - MIDDLE, "least": lo - MIDDLE, "greatest": hi - MIDDLE}


def example_text(name: str) -> str:
    """export/pte_example.py as it stands beside the program, without this repository."""
    types = 'Answer = list[tuple[str, float]]\n"""Classes and their percent, the likeliest first."""\n'
    moved = {
        "from quant.export.example import Answer, main\n": f"\n{types}\n\n{answering()}",
        "python NAME": f"python {name}",
    }
    return standalone("pte_example.py", moved)


def answering() -> str:
    """The functions of export/example.py that answer, from of_picture on."""
    text = read("example.py")
    return text[text.index("def of_picture") : text.index('if __name__ == "__main__"')].rstrip() + "\n"
