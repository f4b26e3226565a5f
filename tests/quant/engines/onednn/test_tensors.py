"""Native tensors of plain uint8: conversions, tables and moved channels, against torch on integers of other types."""

import pytest
import torch

from quant.engines.onednn.tensors import (
    centred,
    clamping,
    in_memory_order,
    interleaved,
    looking_up,
    native,
    native_range,
    on_memory_of,
    quantizing,
    shift,
    shuffled,
    zero_point_of,
)
from tests.helpers import grid

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def maps(channels: int, layout: str = "channels_last") -> torch.Tensor:
    integers = torch.randint(0, 256, (3, channels, 4, 5), dtype=torch.uint8)
    return integers.contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("zero_point", [0, 3, 255])
def test_integers_become_native_and_back(zero_point):
    x = torch.arange(256, dtype=torch.uint8)
    n = centred(x, zero_point)
    assert torch.equal(n, x.float() - zero_point)
    assert torch.equal(native(n, zero_point), x)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_grid_of_fewer_bits_ends_at_255(bits):
    y = grid(0.25, 1, bits)
    assert shift(y) == 256 - 2**bits
    assert zero_point_of(y) == 257 - 2**bits
    assert native_range(y, 0, y.q_max) == (257 - 2**bits, 256 - 2**bits, 255)
    x = torch.cat([torch.randn(100), torch.tensor([0.125, 0.375, 1e30, -1e30])])
    found = quantizing(4.0, *native_range(y, y.q_min, y.q_max))(x)
    assert found.dtype == torch.uint8
    assert torch.equal(centred(found, zero_point_of(y)), y.centred(x))


def test_clamping_is_in_place_and_the_range_of_uint8_needs_none():
    x = torch.arange(256, dtype=torch.uint8)
    assert clamping(0, 255)(x) is x
    assert torch.equal(clamping(20, 200)(x), torch.arange(256).clamp(20, 200).to(torch.uint8))
    assert x.min() == 20


def test_memory_order_is_that_of_channels_last():
    assert in_memory_order(maps(6)).is_contiguous()
    assert in_memory_order(maps(6)).shape == (3, 4, 5, 6)
    matrix = torch.zeros(2, 3)
    assert in_memory_order(matrix) is matrix


def test_the_bytes_of_other_integers_share_their_memory():
    both = torch.tensor([1 + 256 * 2, 3 + 256 * 4], dtype=torch.int16)
    found = on_memory_of(both, torch.uint8, (4,), (1,))
    assert found.tolist() == [1, 2, 3, 4]
    assert found.data_ptr() == both.data_ptr()


VIEWS = {
    "all": lambda x: x,
    "an odd number": lambda x: x[:1, :5, :3, :3],
    "later images": lambda x: x[1:],
    "some channels": lambda x: x[:, 2:4],
    "every second pixel": lambda x: x[:, :, ::2, ::2],
    "a matrix": lambda x: x.flatten(1),
    "part of a matrix": lambda x: x.flatten(1)[1:, 7:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", VIEWS)
def test_a_table_is_looked_up_in_any_view(name, layout):
    table, x = torch.randint(0, 256, (256,), dtype=torch.uint8), VIEWS[name](maps(6, layout))
    found = looking_up(table)(x)
    assert torch.equal(found, table[x.long()])
    assert x.ndim == 2 or found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_interleaved_channels_alternate(layout):
    p, q = maps(6, layout), maps(6, layout)
    for first, second in ((p, q), (p[1:], q[1:]), (p[:, 2:4], q[:, 1:3]), (p, maps(2, layout))):
        found = interleaved(first, second)
        assert torch.equal(found, torch.channel_shuffle(torch.cat([first, second], 1), 2))
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_machine_of_the_other_byte_order_shuffles(monkeypatch):
    p, q = maps(6), maps(6)
    expected = interleaved(p, q)
    monkeypatch.setattr("sys.byteorder", "big")
    assert torch.equal(interleaved(p, q), expected)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_channels_are_shuffled_as_by_torch(groups):
    x = maps(6)
    assert torch.equal(shuffled(x, groups), torch.channel_shuffle(x, groups))
