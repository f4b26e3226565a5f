"""Native tensors on the memory of others, and torch's global engine, which is left as it was."""

import pytest
import torch

import quant
from quant.engines.native.tensors import (
    clamping,
    native_from_centred,
    native_from_uint8,
    quantizing,
    rescaled,
    running_on,
    uint8_view,
)
from quant.engines.onednn.tensors import native_range
from tests.conftest import KERNELS
from tests.helpers import grid


@pytest.mark.parametrize("engine", [e for e in KERNELS if e != "reference"])
def test_running_does_not_depend_on_the_global_engine(engine, net, digits32):
    _, images, _ = digits32
    model, before = quant.convert(net, engine), torch.backends.quantized.engine
    expected = model(images[:16])
    try:
        for other in torch.backends.quantized.supported_engines:
            torch.backends.quantized.engine = other
            assert torch.equal(model(images[:16]), expected)
            assert torch.backends.quantized.engine == other, "left as it was"
    finally:
        torch.backends.quantized.engine = before


def test_the_global_engine_is_restored_after_an_error():
    before = torch.backends.quantized.engine
    other = next(name for name in torch.backends.quantized.supported_engines if name not in (before, "none"))

    def fail() -> None:
        with running_on(other):
            assert torch.backends.quantized.engine == other
            raise ValueError("an error inside")

    with pytest.raises(ValueError, match="an error inside"):
        fail()
    assert torch.backends.quantized.engine == before


def native(layout=torch.channels_last) -> torch.Tensor:
    """[4, 6, 5, 5] of zero point 3."""
    return native_from_centred(torch.randint(-3, 253, (4, 6, 5, 5)).float().contiguous(memory_format=layout), 3)


VIEWS = {
    "all": lambda x: x,
    "later images": lambda x: x[2:],
    "some channels": lambda x: x[:, 2:4],
    "every second pixel": lambda x: x[:, :, ::2, ::2],
    "rows from the third on": lambda x: x[:, :, 2:],
    "a matrix": lambda x: x.flatten(1),
    "a transposed matrix": lambda x: x.flatten(1).t(),
    "part of a matrix": lambda x: x.flatten(1)[1:, 7:],
}
DENSE = ("all", "later images")


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("name", VIEWS)
def test_the_same_integers_as_another_type(name, layout):
    """At an offset, in any order, and with gaps: then on a copy. What is dense shares its memory."""
    x = VIEWS[name](native(layout))
    expected = x.int_repr()
    view, new = uint8_view(x), rescaled(x, 0.5)
    assert view.dtype == torch.uint8
    assert torch.equal(view, expected)
    assert torch.equal(new.int_repr(), expected)
    assert (new.q_scale(), new.q_zero_point()) == (0.5, 3)
    again = native_from_uint8(view, 7)
    assert torch.equal(again.int_repr(), expected)
    assert (again.q_scale(), again.q_zero_point()) == (1.0, 7)
    if name in DENSE:
        assert view.data_ptr() == new.data_ptr() == again.data_ptr() == x.data_ptr()
        view.fill_(9)
        assert (x.int_repr() == 9).all()


@pytest.mark.parametrize("name", VIEWS)
def test_clamping(name):
    x = VIEWS[name](native())
    expected = x.int_repr().clamp(20, 200)
    assert torch.equal(clamping(20, 200)(x).int_repr(), expected)
    assert clamping(20, 255)(native()).int_repr().min() == 20
    assert clamping(0, 200)(native()).int_repr().max() == 200


def test_the_range_of_uint8_needs_no_clamp():
    x = native()
    assert clamping(0, 255)(x) is x


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_grid_of_fewer_bits_ends_at_255(bits):
    y = grid(0.25, 1, bits)
    x = torch.randn(100)
    found = quantizing(0.25, *native_range(y, y.q_min, y.q_max))(x)
    assert found.q_scale() == 1.0
    assert torch.equal(found.dequantize(), y.centred(x))
