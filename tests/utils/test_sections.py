"""Sections are closed and frozen; a section's kinds are chosen by the value of one of its keys."""

from typing import Annotated

import pydantic
import pytest

from utils import sections
from utils.sections import OWN, Section, Variants


class Common(Section):
    name: str = "small"
    """Which one."""
    size: int = 1


class Small(Section):
    depth: int = 2


class Large(Section):
    width: int = 3


class External(Section):
    model_config = pydantic.ConfigDict(extra="allow")


KINDS = sections.variants("name", Common, {"small": Small, "large": Large, OWN: External}, "small")


class Whole(Section):
    part: Annotated[Common, KINDS] = pydantic.Field(default_factory=KINDS.make_default)


def whole(**part):
    return Whole.model_validate({"part": part}).part


class Values(Section):
    bits: sections.Bits = 8
    name: sections.RunName = "run"
    file: sections.PathText = "file"


@pytest.mark.parametrize("bits", [1, 8, 32])
def test_bits_are_1_to_8_or_float(bits):
    assert Values(bits=bits).bits == bits


@pytest.mark.parametrize("values", [{"bits": 0}, {"bits": 9}, {"bits": 31}, {"bits": "8"}, {"bit": 8}])
def test_other_bits_types_and_keys_are_refused(values):
    with pytest.raises(pydantic.ValidationError):
        Values(**values)


@pytest.mark.parametrize("name", ["run", "a/b", "lr=0.1,bits=4", "r+s - t_u.v"])
def test_a_run_name_may_have_folders(name):
    assert Values(name=name).name == name


@pytest.mark.parametrize("name", ["", "/a", "a/", "..", "a/../b", " ", "a\\b", "a:b"])
def test_a_run_name_stays_in_its_folder(name):
    with pytest.raises(pydantic.ValidationError, match="a name is letters"):
        Values(name=name)


def test_a_tilde_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/mine")
    assert Values(file="~/a.pt").file == "/home/mine/a.pt"


@pytest.mark.parametrize("path", ["a\nb.pt", "\x1b[2J"])
def test_a_path_is_printable(path):
    with pytest.raises(pydantic.ValidationError, match="a path without control characters"):
        Values(file=path)


def test_a_section_is_frozen():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Values().bits = 4


def test_the_name_decides_which_keys_there_are():
    assert (whole().depth, whole(size=5).size, whole(name="large").width) == (2, 5, 3)
    assert Whole().part == whole()
    for part in ({"name": "large", "depth": 2}, {"width": 3}, {"name": "larger"}):
        with pytest.raises(pydantic.ValidationError):
            whole(**part)


def test_a_name_with_a_colon_takes_any_keys():
    assert whole(name="package.module:function", anything=7).anything == 7
    with pytest.raises(pydantic.ValidationError):
        whole(name="package/module:function")


def test_what_is_known_of_the_kinds():
    assert KINDS.readers("depth") == ["small"]
    assert KINDS.readers("size") == ["small", "large", OWN]
    assert [KINDS.name(value) for value in ({}, {"name": "large"}, whole(name="large"), {"name": "a:b"}, 7)] == [
        *("small", "large", "large", OWN, "small")
    ]
    assert Variants("name", {"small": Small}, "small").name({"name": "a:b"}) == "a:b", "without a kind for it"
    assert KINDS.kinds["large"].model_fields["name"].description == "Which one."


def test_part_takes_the_keys_of_a_kind():
    assert sections.part(whole(name="large", width=9, size=4), Large) == Large(width=9)
