"""Values survive being encoded as JSON and arrays; a value or a kind that is not on the whitelist is refused."""

import json
import math

import numpy
import pytest
import torch

from quant.core.activation import ClampedAffine
from quant.core.grid import Grid
from quant.core.integer_layer import Geometry
from quant.export.npz.calls import Call
from quant.export.npz.codec import Decoder, Encoder
from utils.errors import UserError


def round_trip(value):
    encoder = Encoder()
    plain = json.loads(json.dumps(encoder.encode(value), allow_nan=False))
    return decoder(encoder).decode(plain)


def decoder(encoder: Encoder) -> Decoder:
    return Decoder({dtype: numpy.concatenate(parts) for dtype, parts in encoder.arrays.items()}, {})


@pytest.mark.parametrize(
    "value",
    [
        None,
        [True, 3, 0.1, "text", (1, [2, ()])],
        {"dim": 1, "slices": (slice(None, -1), slice(0, 4, 2))},
        ClampedAffine(-math.inf, math.inf, 1 / 6, 0.5),
        Geometry((1, 2), (0, 1), (1, 1), 4),
        Call("clamp", (0.0,), {"max": math.inf}),
    ],
    ids=str,
)
def test_values_come_back_with_their_types(value):
    read = round_trip(value)
    assert read == value
    assert type(read) is type(value)


def test_tensors_come_back_with_their_dtypes_and_shapes():
    tensors = [torch.randn(2, 3), torch.randn(4), torch.zeros(0, 5), torch.arange(6, dtype=torch.int8).view(3, 2)]
    tensors += [torch.tensor(0.1), torch.tensor(-7, dtype=torch.int32), torch.nn.Parameter(torch.randn(3))]
    for read, tensor in zip(round_trip(tensors), tensors, strict=True):
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)
    grid = round_trip(Grid(torch.tensor([0.1, 0.3]), torch.tensor([1, 2], dtype=torch.int32), -3, 3, 2))
    assert (grid.scale.tolist(), grid.q_min, grid.q_max, grid.step) == (torch.tensor([0.1, 0.3]).tolist(), -3, 3, 2)


@pytest.mark.parametrize(
    "value",
    [torch.float16, torch.zeros(1, dtype=torch.float64), object(), print],
    ids=lambda value: type(value).__name__,
)
def test_what_a_file_cannot_represent_is_refused_in_a_line(value):
    with pytest.raises(UserError, match=r"^export: a .npz file has no place for .*$"):
        Encoder().encode([value])


MISCHIEF = {
    "'print' is not a kind of value": {"print": ["hello"]},
    "float32 values end before 3": {"tensor": ["float32", 0, [3]]},
    "float32 values end before 1": {"tensor": ["float32", -1, [2]]},
    "int8 values end before -1": {"tensor": ["int8", 0, [-1]]},
    "'x', which no node before it computes": {"node": ["x"]},
    "'system' is not a call": {"Call": ["system", {"tuple": []}, {"dict": []}]},
    "'dropout' is not a call": {"Call": ["dropout"]},
    "'relu' has no integer form": {"IntegerOperator": [{"Call": ["relu"]}, {"tuple": []}, None, 0, 0]},
    "'finished' is not an operator": {"EngineOperator": ["finished", {"tuple": [None]}]},
}


@pytest.mark.parametrize("reason", MISCHIEF)
def test_what_a_file_may_not_contain_is_refused(reason):
    encoder = Encoder()
    encoder.encode(torch.randn(2))
    with pytest.raises(ValueError, match=reason):
        decoder(encoder).decode(MISCHIEF[reason])
