"""The tables of methods and engines."""

import pytest

import quant
from quant.core.method import FLOAT
from quant.engines.base import Engine
from quant.registry import ENGINES, METHODS, SECTIONS, engine
from tests.conftest import spec
from utils.errors import UserError


def test_every_method_has_a_section_with_its_own_options():
    assert set(SECTIONS.kinds) == set(METHODS)
    for name, row in METHODS.items():
        section = SECTIONS.kinds[name]
        assert set(row.options.model_fields) <= set(section.model_fields)
    assert METHODS["float"] is FLOAT


def test_the_default_method_has_a_section_without_a_name():
    assert quant.parse().method == "statassist"


def test_every_engine_has_its_name():
    assert {name: make().name for name, make in ENGINES.items()} == {name: name for name in ENGINES}
    assert all(isinstance(make(), Engine) for make in ENGINES.values())


def test_an_engine_is_made_once():
    assert engine("reference") is engine("reference")


def test_an_unknown_engine_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"^run\.engines: .*fbgem.*fbgemm"):
        engine("fbgem", "run.engines")
    with pytest.raises(UserError, match=r"^quant\.engine: "):
        engine("fbgem")


def test_an_engine_that_is_not_here_is_refused_with_those_that_are(monkeypatch):
    class Absent(Engine):
        def missing(self):
            return "is on the moon"

    monkeypatch.setitem(ENGINES, "absent", Absent)
    with pytest.raises(UserError, match=r"^quant\.engine: absent is on the moon \(here: reference, ") as caught:
        engine("absent")
    assert "absent," not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "float"])
def test_a_method_says_whether_its_quantizers_learn(name):
    resolved = spec(method=name, weight_bits=4, act_bits=4)
    row = METHODS[name]
    made = (row.weight(resolved, 4, (8, 3, 3, 3)), row.activation(resolved, 4, False))
    assert any([*quantizer.parameters()] for quantizer in made) == row.learns
