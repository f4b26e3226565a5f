"""The operators of the library `qdq`: what engines/onnx_qdq.py puts into a graph that is to become an ONNX file.

Each takes and returns floats on a grid, the values between a DequantizeLinear and the next QuantizeLinear. Grids are
passed as numbers, shifted so that q_min is 0. The functions here compute in torch what engines/onnx_writer.py writes.

    quantize      any values, divided by `step`, become integers, which are then values on `scale`: exact in every
                  runtime, since the division is a multiplication of its own
    to_fuse       the same, written so that runtimes recognize it and compute operator and rounding in one. Their
                  rounding is their own, so that it is for values that lie far from every tie
    kept          values that an operator moved or selected, and that are on the grid as before
    unfused       values on a grid as they are, read by an operator in float that no runtime computes together with what
                  made them. OpenVINO would leave out the rounding of a convolution before it, scale integers in its own
                  way, and add a product before it is rounded (fused multiply-add)
    concatenate   values on one grid, one after another: of their integers
    integers      the integers less the zero point of values on a grid
    look_up       the entry of a table for each integer: a function of one tensor
    layer         an integer layer. last_layer: one whose output is float
"""

import torch
from torch import Tensor

from quant.core.grid import Grid
from quant.core.integer_layer import Geometry, IntegerLayer

LIBRARY = torch.library.Library("qdq", "FRAGMENT")
ON_GRID = "float scale, int zero_point, int lo, int hi"
LAYER = "Tensor x, Tensor weight, Tensor weight_scale, Tensor bias, Tensor bias_scale"
LAYER += ", float x_scale, int x_zero_point, int[] geometry"
LIBRARY.define(f"quantize(Tensor x, float step, {ON_GRID}) -> Tensor")
LIBRARY.define(f"to_fuse(Tensor x, float step, {ON_GRID}) -> Tensor")
LIBRARY.define("kept(Tensor x, float scale, int zero_point) -> Tensor")
LIBRARY.define("unfused(Tensor x, float scale, int zero_point) -> Tensor")
LIBRARY.define("concatenate(Tensor[] x, int axis, float scale, int zero_point) -> Tensor")
LIBRARY.define("integers(Tensor x, float scale, int zero_point) -> Tensor")
LIBRARY.define(
    "look_up(Tensor x, Tensor table, float x_scale, int x_zero_point, float scale, int zero_point) -> Tensor"
)
LIBRARY.define(f"layer({LAYER}, {ON_GRID}) -> Tensor")
LIBRARY.define(f"last_layer({LAYER}) -> Tensor")


def on_grid(y: Grid, lo: int, hi: int) -> tuple[float, int, int, int]:
    """(scale, zero_point, lo, hi) of grid y as the operators take them."""
    return float(y.scale), int(y.zero_point) - y.q_min, lo - y.q_min, hi - y.q_min


def _grid(scale: float, zero_point: int) -> Grid:
    return Grid(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), 0, 255)


def quantize(x: Tensor, step: float, scale: float, zero_point: int, lo: int, hi: int) -> Tensor:
    q = _grid(step, zero_point).to_int(x).clamp_(lo, hi)
    return _grid(scale, zero_point).value(q.sub_(zero_point))


def same(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return x.clone()


def concatenate(x: list[Tensor], axis: int, scale: float, zero_point: int) -> Tensor:
    return torch.cat(x, axis)


def integers(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return _grid(scale, zero_point).centred(x)


def look_up(x: Tensor, table: Tensor, x_scale: float, x_zero_point: int, scale: float, zero_point: int) -> Tensor:
    """table: uint8, an entry for each integer of x's grid."""
    found = table[_grid(x_scale, x_zero_point).to_int(x).long()]
    return _grid(scale, zero_point).value(found.float().sub_(zero_point))


def layer(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    bias_scale: Tensor,
    x_scale: float,
    x_zero_point: int,
    geometry: list[int],
    scale: float | None = None,
    zero_point: int = 0,
    lo: int = 0,
    hi: int = 0,
) -> Tensor:
    """An IntegerLayer whose input and output are float values on their grids.

    The weights of a linear layer are [I, O], and its `geometry` is empty. Otherwise geometry holds stride (2), padding
    (2), dilation (2) and groups. scale None: the output is float and not quantized.
    """
    g, weight = geometry, weight if geometry else weight.t()
    shape = Geometry((g[0], g[1]), (g[2], g[3]), (g[4], g[5]), g[6]) if g else Geometry()
    source = _grid(x_scale, x_zero_point)
    y = None if scale is None else _grid(scale, zero_point)
    integer_layer = IntegerLayer(shape, weight.float(), weight_scale, bias.float(), source, y, lo, hi)
    output = integer_layer(source.centred(x))
    return output if y is None else y.value(output)


for name, function in {
    "quantize": quantize,
    "to_fuse": quantize,
    "kept": same,
    "unfused": same,
    "concatenate": concatenate,
    "integers": integers,
    "look_up": look_up,
    "layer": layer,
    "last_layer": layer,
}.items():
    LIBRARY.impl(name, function, "CPU")


@torch.library.register_fake("qdq::quantize", lib=LIBRARY)
@torch.library.register_fake("qdq::to_fuse", lib=LIBRARY)
@torch.library.register_fake("qdq::kept", lib=LIBRARY)
@torch.library.register_fake("qdq::unfused", lib=LIBRARY)
@torch.library.register_fake("qdq::integers", lib=LIBRARY)
@torch.library.register_fake("qdq::look_up", lib=LIBRARY)
def _(x, *rest):
    return torch.empty_like(x)


@torch.library.register_fake("qdq::concatenate", lib=LIBRARY)
def _(x, axis, *rest):
    return torch.cat(x, axis)


@torch.library.register_fake("qdq::layer", lib=LIBRARY)
@torch.library.register_fake("qdq::last_layer", lib=LIBRARY)
def _(x, weight, weight_scale, bias, bias_scale, x_scale, x_zero_point, geometry, *on_grid):
    g = geometry
    if not g:
        return x.new_empty((*x.shape[:-1], weight.shape[1]))
    return torch.nn.functional.conv2d(x, weight.float(), None, g[:2], g[2:4], g[4:6], g[6])
