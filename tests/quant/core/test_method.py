"""The row of a method: its defaults, and the row of float training."""

import pytest

import quant
from quant.core.method import FLOAT, Method, NoOptions
from quant.methods import lsq
from tests.conftest import spec
from utils.errors import UserError


def test_float_trains_to_the_end_and_quantizes_nothing():
    settings = spec(method="float")
    assert FLOAT.float_epochs(settings.options, 7) == 7
    assert len(FLOAT.weight_bits) == len(FLOAT.act_bits) == 0
    for make in (FLOAT.weight, FLOAT.activation, FLOAT.residual):
        with pytest.raises(UserError, match=r"^quant\.method: float quantizes nothing$"):
            make(settings, 8, False)


def test_what_a_method_does_not_say_has_no_effect():
    make = FLOAT.weight, FLOAT.activation, FLOAT.residual
    method = Method(NoOptions, *make, lambda options, epochs: 0, range(2), range(2))
    settings, options = spec(method="float"), NoOptions()
    assert method.gradient(settings) is None
    assert method.fill(options) is options
    assert method.corrects(options) is False
    assert method.dampening(options) == 0.0
    assert method.rescales(settings) is False
    assert method.check(settings) is None


def test_a_row_cannot_be_changed():
    with pytest.raises(AttributeError):
        lsq.METHOD.weight_bits = range(3)


@pytest.mark.parametrize("name", [name for name in quant.METHODS if name != "float"])
def test_every_other_method_makes_quantizers_for_some_bits(name):
    row = quant.METHODS[name]
    assert 8 in row.weight_bits or 7 in row.weight_bits
    assert 8 in row.act_bits
    assert 0 not in row.weight_bits
    assert 0 not in row.act_bits
