"""Codes of a few bits each as a stream of bytes without gaps: lowest bit first, two's complement."""

import numpy


def pack(codes: numpy.ndarray, bits: int) -> numpy.ndarray:
    """uint8 [ceil(n bits / 8)] of n codes of any shape. Raises ValueError if one does not fit."""
    codes = codes.reshape(-1, 1).astype(numpy.int16)
    if codes.size and not -(2 ** (bits - 1)) <= codes.min() <= codes.max() < 2 ** (bits - 1):
        raise ValueError(f"codes of {codes.min()} .. {codes.max()} in {bits} bits")
    return numpy.packbits((codes >> numpy.arange(bits, dtype=numpy.int16)) & 1, bitorder="little")


def unpack(packed: numpy.ndarray, bits: int, count: int) -> numpy.ndarray:
    """The codes that `pack` packed, int8 [count]. Raises ValueError if `packed` has another length."""
    if len(packed) != -(-count * bits // 8):
        raise ValueError(f"{len(packed)} bytes for {count} codes of {bits} bits")
    stream = numpy.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    worth = [2**j for j in range(bits - 1)] + [-(2 ** (bits - 1))]
    return stream.view(numpy.int8) @ numpy.array(worth, numpy.int8)
