"""Codes packed at their own bits."""

import numpy
import pytest
import torch

from quant.export.npz.packing import pack, unpack


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_take_their_own_bits_and_come_back(bits):
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (7, 5, 3)).numpy()
    packed = pack(codes, bits)
    assert packed.dtype == numpy.uint8
    assert len(packed) == -(-105 * bits // 8)
    unpacked = unpack(packed, bits, codes.size)
    assert unpacked.dtype == numpy.int8
    assert (unpacked == codes.reshape(-1)).all()
    for outside in (2 ** (bits - 1), -(2 ** (bits - 1)) - 1):
        with pytest.raises(ValueError, match="codes of"):
            pack(numpy.array([outside]), bits)
    with pytest.raises(ValueError, match="bytes for"):
        unpack(packed[:-1], bits, codes.size)


def test_the_stream_is_filled_from_the_lowest_bit_and_eight_bits_are_int8():
    assert pack(numpy.array([1, 2, -1, 0, 3]), 3).tolist() == [0b11010001, 0b00110001]
    codes = numpy.array([-128, -1, 0, 127])
    assert (pack(codes, 8).view(numpy.int8) == codes).all()
