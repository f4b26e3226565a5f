"""Exports the integer model with torch.export into a folder that can be used without this repository.

model.pt2        the integer model: int8 weights, any batch size
integer_ops.py   its operators (a copy of export/integer_ops.py); import it before loading model.pt2
model.json       image size, normalization, class names
example.py       predicts the classes of pictures (export/example.py, with the functions that it imports)
"""

import inspect
import io
import shutil
from pathlib import Path

import torch
from torch import fx

from quant.core.grid import Grid
from quant.core.integer_layer import IntegerLayer
from quant.engines.base import Engine, IntegerModel, Operator
from quant.engines.convert import convert
from quant.export import integer_ops
from quant.export.batch_check import check_batches
from quant.graph import operator_row
from utils.files import write_atomically, write_json, write_text
from utils.image_input import in_8_bits, keep_only_orientation, resize_and_crop, upright

FLOAT_ERROR = 1e-5
"""What torch.export may change in float, of the largest logit."""


class PortableEngine(Engine):
    """An engine of operators that torch.export can write; layers use those of export/integer_ops.py.

    A native tensor is uint8 and holds q - q_min.
    """

    name = "portable"
    is_timed = False  # the model is taken to other machines, and is to be the same whatever else runs on this one

    def quantize(self, grid: Grid) -> Operator:
        return lambda x: (grid.to_int(x) - grid.q_min).to(torch.uint8)

    def dequantize(self, grid: Grid) -> Operator:
        centred = self.from_native(grid)
        return lambda native: grid.value(centred(native))

    def to_native(self, grid: Grid) -> Operator:
        zero_point = _zero_point(grid)
        return lambda n: (n + zero_point).to(torch.uint8)

    def from_native(self, grid: Grid) -> Operator:
        zero_point = _zero_point(grid)
        return lambda native: native.float() - zero_point

    def kernels(self, layer: IntegerLayer) -> tuple[str, ...]:
        return ("onednn", "onednn sums") if layer.y is not None and layer.off_ties() else ("onednn sums",)

    def layer(self, layer: IntegerLayer, kernel: str) -> Operator:
        g, y, operators = layer.geometry, layer.y, torch.ops.integer
        geometry = [] if g.linear else [*g.stride, *g.padding, *g.dilation, g.groups]
        numbers = (layer.weight.to(torch.int8).contiguous(), layer.bias)
        if y is None:
            given = (*numbers, layer.accumulator_scale(), geometry, _zero_point(layer.x))
            return lambda x: operators.logits(x, *given)
        inputs = (*numbers, layer.multiplier(), geometry, _zero_point(layer.x))
        outputs = (_zero_point(y), layer.lo - y.q_min, layer.hi - y.q_min, kernel == "onednn")
        return lambda x: operators.layer(x, *inputs, *outputs)

    def relu(self, grid: Grid) -> Operator:
        zero_point = _zero_point(grid)
        return lambda native: native.clamp_min(zero_point)

    def conversions_around(self, grid: Grid, row: operator_row.Operator) -> tuple[Operator, Operator] | None:
        return (self.from_native(grid), self.to_native(grid)) if row.pads or not row.on_quantized else None


def _zero_point(grid: Grid) -> int:
    """The zero point of native tensors on the grid."""
    return int(grid.zero_point) - grid.q_min


def export(prepared: fx.GraphModule, folder: Path, image_size: int, info: dict, channels: int = 3) -> IntegerModel:
    """Write the integer model of a prepared one into a folder, with `info` as model.json.

    image_size: the side of the square images that the model takes, in pixels. Returns the integer model. Raises
    UserError if a quantizer has not been calibrated, RuntimeError if the exported model computes other logits.
    """
    model, images = convert(prepared, PortableEngine()), torch.zeros(2, channels, image_size, image_size)
    batch = {0: torch.export.Dim("batch")}
    with torch.no_grad():
        program = torch.export.export(model.graph, (images,), dynamic_shapes=(batch,))
    check_batches(model, program.module(), image_size, FLOAT_ERROR, str(folder / "model.pt2"), channels)
    for node in program.graph.nodes:  # else paths of this machine's source files, and half the size of the file
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    program.example_inputs = None  # two images, in float
    buffer = io.BytesIO()  # so that a full disk raises OSError rather than an error of torch's
    torch.export.save(program, buffer)
    write_atomically(folder / "model.pt2", lambda part: part.write_bytes(buffer.getbuffer()))
    write_atomically(folder / "integer_ops.py", lambda part: shutil.copyfile(integer_ops.__file__, part))
    write_json(folder / "model.json", info)
    write_text(folder / "example.py", example_text())
    return model


def example_text() -> str:
    """The source of export/example.py without imports of this repository, to stand beside the model."""
    return standalone("example.py", {"from quant.export import integer_ops": "import integer_ops"})


def standalone(name: str, moved: dict[str, str]) -> str:
    """The source of a module of export/ that is to stand beside a model: with the functions that make the square, and
    lines replaced by others. Raises RuntimeError if the module has no such line.

    It is read, not imported, because examples import packages that exporting does without.
    """
    made_square = (keep_only_orientation, in_8_bits, upright, resize_and_crop)
    functions = "\n\n" + "\n\n".join(inspect.getsource(function) for function in made_square)
    moved = moved | {"from utils.image_input import resize_and_crop, upright\n": functions}
    text = read(name)
    for here, there in moved.items():
        if here not in text:
            raise RuntimeError(f"export/{name} has no line {here!r}")
        text = text.replace(here, there)
    return text


def read(name: str) -> str:
    """The source of a module of export/."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
