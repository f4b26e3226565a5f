"""Integers packed at their own bits, and layers as records of a packed file."""

import numpy
import pytest
import torch

import quant
from quant.export.npz.records import pack, packed_bytes, unpack
from tests.conftest import photos
from tests.packed import EVERY_METHOD, exported, prepared_net


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_take_their_own_bits_and_come_back(bits):
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (7, 5, 3)).numpy()
    packed = pack(codes, bits)
    assert packed.dtype == numpy.uint8
    assert len(packed) == packed_bytes(codes.size, bits) == -(-105 * bits // 8)
    assert (unpack(packed, bits, codes.size) == codes.reshape(-1)).all()
    with pytest.raises(ValueError, match="codes of"):
        pack(numpy.array([2 ** (bits - 1)]), bits)


def test_the_stream_is_filled_from_the_lowest_bit_and_eight_bits_are_int8():
    assert pack(numpy.array([1, 2, -1, 0, 3]), 3).tolist() == [0b11010001, 0b00110001]
    codes = numpy.array([-128, -1, 0, 127])
    assert (pack(codes, 8).view(numpy.int8) == codes).all()


def test_channels_that_left_their_grid_come_back(tmp_path):
    """A dead batch norm, and one so small that the integers are rounded anew on a larger scale."""
    prepared = prepared_net("resnet20", {}, EVERY_METHOD[3])
    norm = prepared.get_submodule("bn1")
    with torch.no_grad():
        norm.weight[:3] = torch.tensor([0.0, 1e-12, -0.7])
        norm.bias[:3] = 2.0
    read, layer = exported(prepared, tmp_path / "m.npz"), quant.convert(prepared, "reference").layers["conv1"].layer
    assert not layer.weight[:2].any()
    assert torch.equal(read.layers["conv1"].weight, layer.weight)
    with torch.inference_mode():
        assert torch.equal(read(photos(8, 32)), prepared(photos(8, 32)))
