"""A mistake in a setting is one line: the file or the command line, the key, what is wrong, the nearest right thing."""

from typing import Annotated, Literal

import pydantic
import pytest

from utils import mistakes, sections
from utils.sections import Section


class Common(Section):
    method: str = "lsq"
    engine: str = ""


class Lsq(Section):
    step_init: Literal["mean", "mse"] = "mean"


class Ptq(Section):
    observer: str = "mse"


KINDS = sections.variants("method", Common, {"lsq": Lsq, "ptq": Ptq}, "lsq")


class Run(Section):
    epochs: int = pydantic.Field(1, ge=0)
    engines: str = ""


class Whole(Section):
    quant: Annotated[Common, KINDS] = pydantic.Field(default_factory=KINDS.make_default)
    run: Run = Run()
    layers: dict[str, Run] = pydantic.Field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"run": {"epoch": 3}}, "a.json: run.epoch: unknown key, did you mean epochs?"),
        ({"run": {"engine": 3}}, "a.json: run.engine: unknown key, did you mean engines?"),
        ({"zzzz": 3}, "a.json: zzzz: unknown key"),
        ({"run": {"epochs": -1}}, "a.json: run.epochs: input should be greater than or equal to 0, not -1"),
        ({"run": {"epochs": "3"}}, 'a.json: run.epochs: input should be a valid integer, not "3"'),
        ({"layers": {"conv1": {"epoch": 3}}}, "a.json: layers.conv1.epoch: unknown key, did you mean epochs?"),
        ({"quant": {"observer": "mse"}}, "a.json: quant.observer is read by ptq; quant.method is lsq"),
        (
            {"quant": {"method": "lsqq"}},
            "a.json: quant.method: unknown 'lsqq'; choose from lsq, ptq (nearest: lsq)",
        ),
        (
            {"quant": {"step_init": "means"}},
            "a.json: quant.step_init: input should be 'mean' or 'mse', not \"means\" (nearest: mean)",
        ),
    ],
)
def test_a_mistake_is_one_line(values, line):
    assert message(values, "a.json") == line


def message(values: dict, source: str, overridden: tuple[str, ...] = ()) -> str:
    with pytest.raises(pydantic.ValidationError) as refused:
        Whole.model_validate(values)
    return mistakes.one_line(Whole, refused.value.errors()[0], source, overridden)


def test_the_command_line_is_named_where_the_value_is_from_there():
    wrong = {"run": {"epochs": -1}}
    assert message(wrong, "a.json", ("run.epochs",)).startswith("command line: run.epochs: ")
    assert message(wrong, "a.json", ("run",)).startswith("command line: run.epochs: ")
    assert message(wrong, "a.json", ("run.epoch",)).startswith("a.json: run.epochs: ")
    assert message(wrong, "").startswith("run.epochs: ")
