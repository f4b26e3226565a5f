"""Integers packed at their own bits, and back.

A code c is a signed integer of k bits. Bit j of code i is bit i k + j of the stream, each byte filled from its lowest
bit up; so 8-bit codes are plain int8. The integers of a weight grid are

    q = s c + s - 1,    s = 1, or 2 where the grid holds the odd integers alone (quant/odd.py)

and k bits hold every grid of k bits: -2^(k-1) .. 2^(k-1) - 1 at s = 1, the odd -(2^k - 1) .. 2^k - 1 at s = 2.
"""

import numpy

from quant.grid import Grid


def pack(codes: numpy.ndarray, bits: int) -> numpy.ndarray:
    """uint8 [ceil(n bits / 8)] of n codes of any shape. Raises ValueError if one does not fit."""
    codes = codes.reshape(-1).astype(numpy.int16)
    if codes.size and not -(2 ** (bits - 1)) <= codes.min() <= codes.max() < 2 ** (bits - 1):
        raise ValueError(f"codes of {codes.min()} .. {codes.max()} in {bits} bits")
    stream = numpy.empty((len(codes), bits), numpy.uint8)
    for j in range(bits):
        stream[:, j] = (codes >> j) & 1
    return numpy.packbits(stream.reshape(-1), bitorder="little")


def unpack(packed: numpy.ndarray, bits: int, count: int) -> numpy.ndarray:
    """The int8 [count] codes again. Raises ValueError if there are not as many."""
    if len(packed) != packed_bytes(count, bits):
        raise ValueError(f"{len(packed)} bytes for {count} codes of {bits} bits")
    stream = numpy.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits).view(numpy.int8)
    codes = -stream[:, -1] * numpy.int8(2 ** (bits - 1) - 1) - stream[:, -1]  # two's complement: worth -2^(k-1)
    for j in range(bits - 1):
        codes += stream[:, j] << j
    return codes


def packed_bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def step_of(grid: Grid, bits: int) -> int:
    """s: a grid with more integers than so many bits can tell apart holds the odd ones alone."""
    return 1 if grid.q_max - grid.q_min < 2**bits else 2
