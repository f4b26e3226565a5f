"""What is common to the exports that are one program of one image: ExecuTorch's (.pte) and LiteRT's (.tflite).

NAME.json         image size, normalization, class names, and the integers: their grids and what computes each operator
NAME_example.py   asks the program what it sees in pictures, without this repository
"""

from pathlib import Path
from typing import Any

import torch
from torch import fx

from quant.core.grid import Grid
from quant.engines.base import IntegerModel
from quant.engines.convert import convert
from quant.engines.nhwc_builder import MIDDLE, Builder
from quant.engines.programs import ProgramEngine, ProgramModel
from quant.engines.qdq_operators import on_grid
from quant.export.torch_export import read, standalone
from utils.errors import UserError
from utils.files import write_json, write_text

PROGRAMS = (".pte", ".tflite")


def check_beside(file: Path) -> None:
    """Raise UserError if what would be written beside a program is that of another one of the same name."""
    for other in (file.with_suffix(suffix) for suffix in PROGRAMS if suffix != file.suffix):
        if other.exists():
            beside = f"{file.stem}.json and {file.stem}_example.py"
            raise UserError(f"export: {beside} in {file.parent} are those of {other.name}; choose another name")


def converted(
    prepared: fx.GraphModule, engine: ProgramEngine, image_size: int, channels: int
) -> tuple[IntegerModel, Builder]:
    """The integer model of a prepared one, and the graph of its program for one image, which has been run.

    Raises UserError if a quantizer has not been calibrated, or for an operator that the runtime does not have.
    """
    model = convert(prepared, engine)
    if not isinstance(model, ProgramModel):
        raise TypeError(f"converted for {engine.name}, but a {type(model).__name__}")
    return model, model.written(torch.Size([1, channels, image_size, image_size]))


def write_beside(file: Path, info: dict[str, Any], model: IntegerModel, template: str) -> None:
    """Write what a program takes, and the example that asks it, beside the file. template: a module of export/."""
    write_json(file.with_suffix(".json"), info | {"integers": contract(model)})
    write_text(file.with_name(f"{file.stem}_example.py"), example_text(template, f"{file.stem}_example.py"))


def contract(model: IntegerModel) -> dict[str, Any]:
    """The grids of all values by their names, as int8: value = scale (integer - zero_point); and the kernels."""
    grids = {name: grid for name, (_, grid) in model.node_map.items() if grid is not None}
    kernels = {name: converted.kernel for name, converted in model.layers.items()} | model.operators
    return {"values": {name: _in_int8(grid) for name, grid in grids.items()}, "kernels": kernels}


def _in_int8(grid: Grid) -> dict[str, float | int]:
    scale, zero_point, lo, hi = on_grid(grid, grid.q_min, grid.q_max)
    return {"scale": scale, "zero_point": zero_point - MIDDLE, "least": lo - MIDDLE, "greatest": hi - MIDDLE}


def example_text(template: str, name: str) -> str:
    """A module of export/ as it stands beside the program, without this repository."""
    types = 'Answer = list[tuple[str, float]]\n"""Classes and their percent, the likeliest first."""\n'
    moved = {
        "from quant.export.example import Answer, main\n": f"\n{types}\n\n{answering()}",
        "python NAME": f"python {name}",
    }
    return standalone(template, moved)


def answering() -> str:
    """The functions of export/example.py that answer, from of_picture on."""
    text = read("example.py")
    return text[text.index("def of_picture") : text.index('if __name__ == "__main__"')].rstrip() + "\n"
