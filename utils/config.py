"""The machinery of settings: files, overrides `section.key=value`, and mistakes in one line.

A setting is a Section of Sections. What keys there are is said where they are read, and put together in
experiment/settings.py. `load` reports a mistake in one line: file, key, what is wrong, the nearest right thing.
"""

import argparse
import contextlib
import json
import os
import re
import sys
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
    ValidationError,
    WithJsonSchema,
    create_model,
)
from pydantic_core import CoreSchema

from utils.errors import UserError, choose, nearest


def _bits(value: int) -> int:
    if value != 32 and not 1 <= value <= 8:
        raise ValueError(f"{value} bits; choose 1..8, or 32 for float")
    return value


Bits = Annotated[int, AfterValidator(_bits), WithJsonSchema({"type": "integer", "enum": [*range(1, 9), 32]})]


def _run_name(value: str) -> str:
    parts = value.split("/")
    if not all(re.fullmatch(r"[\w.=,+ -]+", part) and part.strip(". ") for part in parts):
        raise ValueError("a name is letters, digits and . = , + - _, with / between folders")
    return value


RunName = Annotated[str, AfterValidator(_run_name)]
PathText = Annotated[str, AfterValidator(os.path.expanduser)]
"""A file or folder; ~ is the user's own."""


def as_name(text: str) -> str:
    """A run's name that is as near to a text as a name can be."""
    return re.sub(r"[^\w.=,+ -]", "_", text)


class Section(BaseModel):
    """A part of a setting: frozen, and closed to keys that it does not name. Field docstrings describe the keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    @classmethod
    def rename(cls, values: dict) -> list[str]:
        """Give keys of earlier versions their names of today, in place. Returns a notice for each."""
        return []


OWN = "package.module:function"
"""What stands in a table for all names with a colon."""


class Variants:
    """The kinds of a section whose keys depend on the value of one of them: keys of a method on its name, say.

    It annotates the base of the kinds: `quant: Annotated[QuantSettings, Variants("method", kinds, "statassist")]` takes
    the keys of kinds[method]. Without a value for the key, the default counts. A kind under the name OWN takes all
    values with a colon.
    """

    def __init__(self, key: str, kinds: Mapping[str, type[Section]], default: str):
        self.key, self.kinds, self.default = key, kinds, default

    def name(self, value: Any) -> str:
        """The name of the kind that a section asks for, whether or not there is one."""
        if not isinstance(value, (dict, Section)):
            return self.default  # which refuses what is no section
        found = value.get(self.key, self.default) if isinstance(value, dict) else getattr(value, self.key)
        return OWN if OWN in self.kinds and ":" in str(found) else str(found)

    def readers(self, key: str) -> list[str]:
        """The kinds that have this key."""
        return [name for name, kind in self.kinds.items() if key in kind.model_fields]

    def make_default(self) -> Any:
        return self.kinds[self.default]()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        branches = tuple(Annotated[kind, Tag(name)] for name, kind in self.kinds.items())
        return handler.generate_schema(Annotated[typing.Union[branches], Discriminator(self.name)])  # noqa: UP007


def variants(key: str, base: type[Section], options: Mapping[str, type[Section]], default: str) -> Variants:
    """A kind for each name: the keys of `base` and those of its options. The description of `key` is the base's."""
    return Variants(key, {name: _kind(key, base, own, name, name == default) for name, own in options.items()}, default)


def _kind(key: str, base: type[Section], own: type[Section], name: str, is_default: bool) -> type[Section]:
    described = base.model_fields[key].description
    value = Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")] if name == OWN else Literal[name]
    field = Field(name, description=described) if is_default else Field(description=described)
    return create_model(
        f"{base.__name__} {'external' if name == OWN else name}", __base__=(own, base), **{key: (value, field)}
    )


S = TypeVar("S", bound=Section)


def part(section: Section, kind: type[S]) -> S:
    """The keys of a kind, which a section has among others."""
    return kind(**{key: getattr(section, key) for key in kind.model_fields})


LARGEST, DEEPEST = 2**20, 32
"""Bytes of a setting file, and brackets within brackets."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"command line: {message}; --help tells what there is")


def parser(description: str, default: str, choices: Iterable[str]) -> argparse.ArgumentParser:
    """The command line that all scripts share; `choices` are what --list can list."""
    cli = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("-c", "--config", default=default, metavar="FILE", help=f"setting file (default: {default})")
    cli.add_argument("--list", choices=list(choices), help="print the names to choose from, and stop")
    cli.add_argument("--print-config", action="store_true", help="print the resolved setting and stop")
    cli.add_argument("overrides", nargs="*", metavar="section.key=value", help="lay a value over the file's")
    return cli


def load(kind: type[S], path: str, texts: list[str]) -> S:
    """Read a setting file, lay the overrides `section.key=value` over it and check it all.

    A notice of each key that has another name today goes to stderr. Raises UserError in one line.
    """
    values = _read(path)
    for notice in kind.rename(values):
        print(f"{path}: {notice}", file=sys.stderr)
    given = overrides(kind, texts, notify=True)
    for key, value in given.items():
        _lay(values, key.split("."), value, f"command line: {key}")
    return validate(kind, values, path, set(given))


def overrides(kind: type[Section], texts: list[str], notify: bool = False) -> dict[str, Any]:
    """Dotted key -> value of `section.key=value` texts, under the keys' names of today.

    Values are JSON where they parse as JSON, else strings.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"command line: {text!r} is not of the form section.key=value")
        one = {key: _json_or_text(value)}
        for notice in kind.rename(one):
            if notify:
                print(f"command line: {notice}", file=sys.stderr)
        for name in one:
            found.pop(name, None)  # the last one counts, and is laid last
        found |= one
    return found


def rename(values: dict, table: Mapping[str, str]) -> list[str]:
    """Replace old dotted keys of a table by the new ones, in place, in sections or dotted; returns a notice of each.

    Raises UserError where both are there.
    """
    notices = []
    for old, new in table.items():
        for there, key, now in _places(values, old.split("."), new.split(".")):
            if now in there:
                raise UserError(f"{old} is now {new}, and both are there")
            renamed = {now if name == key else name: value for name, value in there.items()}
            there.clear()
            there.update(renamed)  # in the order they were in
            notices.append(f"{old} is now {new}")
    return notices


def _places(values: Any, old: list[str], new: list[str]) -> Iterator[tuple[dict, str, str]]:
    """The tables that hold an old key, with the key as it is written there and the new one written alike."""
    if not isinstance(values, dict):
        return
    for count in range(1, len(old) + 1):
        key = ".".join(old[:count])
        if key in values and count == len(old):
            yield values, key, ".".join(new[:count])
        elif key in values:
            yield from _places(values[key], old[count:], new[count:])


@contextlib.contextmanager
def blame(source: str) -> Iterator[None]:
    """Open the message of a UserError raised within with the name of the setting file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def validate(kind: type[S], values: dict, source: str, overridden: Collection[str] = ()) -> S:
    """`values` as an immutable, checked `kind`; `source` (a file name), if any, opens the message of a mistake."""
    try:
        return kind.model_validate_json(json.dumps(values))
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):  # a tensor, say, in the setting of a checkpoint
            raise UserError(f"{source}: not plain values: {error}") from None
        raise UserError(_one_line(kind, error.errors()[0], source, overridden)) from None


def validate_section(section: str, kinds: Variants, values: dict, source: str = "") -> Any:
    """The values of a single section as one of its kinds."""
    holder = create_model("Holder", __base__=Section, **{section: (Annotated[Section, kinds], ...)})
    return getattr(validate(holder, {section: values}, source), section)


def vary(settings: S, laid_over: dict[str, Any], source: str) -> S:
    """The settings with values laid over those that were set, not over defaults; keys are dotted."""
    values = json.loads(settings.model_dump_json(exclude_unset=True))
    for key, value in laid_over.items():
        _lay(values, key.split("."), value, f"{source}: {key}")
    return validate(type(settings), values, source)


def _read(path: str) -> dict:
    try:
        if Path(path).stat().st_size > LARGEST:
            raise UserError(f"{path}: larger than a setting can be ({LARGEST / 1e6:.0f} MB)")
        values = _parsed(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        beside = [str(p) for p in Path(path).parent.glob("*.json")] if Path(path).parent.is_dir() else []
        hint = nearest(path, beside)
        raise UserError(f"{path}: {error.strerror or error}" + (f", did you mean {hint}?" if hint else "")) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object")
    values.pop("$schema", None)  # for editors
    return values


def _parsed(text: str) -> Any:
    """JSON, strictly: no NaN, nothing twice, and no deeper than a setting can be. Raises ValueError."""
    depth = 0
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(bracket, 0)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} brackets deep")
    return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_once)


def _finite(text: str) -> float:
    return float(text) if abs(float(text)) < float("inf") else _refuse(text)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not a number")


def _once(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in names if names.count(key) > 1)} is there twice")
    return found


def _json_or_text(value: str) -> Any:
    try:
        return _parsed(value)
    except ValueError:
        return value


def _lay(values: dict, keys: list[str], value: Any, where: str) -> None:
    if len(keys) > DEEPEST:
        raise UserError(f"{where[:80]} ...: more than {DEEPEST} keys deep")
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UserError(f"{where}: {key} is not a section")
    values[keys[-1]] = value


def _one_line(kind: type[Section], error: Any, source: str, overridden: Collection[str]) -> str:
    location = error["loc"]
    keys, _, _ = _located(kind, location)
    section, inside, choice = _located(kind, location[:-1])
    dotted = ".".join(keys)
    laid_over = any(f"{dotted}.".startswith(f"{key}.") for key in overridden)
    opening = "command line: " if laid_over else f"{source}: " if source else ""
    where = opening + dotted
    if error["type"] == "extra_forbidden":
        return where + _unknown(location, ".".join(section), inside, choice)
    if error["type"] == "union_tag_invalid":
        return _unknown_name(kind, error, where)
    message = error["msg"].removeprefix("Value error, ")
    shown = json.dumps(error["input"], default=str)
    word = nearest(str(error["input"]), re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", ""))))
    return f"{where}: {message[0].lower()}{message[1:]}, not {shown}" + (f" (nearest: {word})" if word else "")


def _unknown(location: tuple, section: str, inside: Any, choice: Variants | None) -> str:
    """What to say behind a key that its section does not have."""
    key = str(location[-1])
    readers = choice.readers(key) if choice else []
    if choice and readers:
        return f" is read by {', '.join(readers)}; {section}.{choice.key} is {location[-2]}"
    hint = nearest(key, inside.model_fields)
    return ": unknown key" + (f", did you mean {hint}?" if hint else "")


def _unknown_name(kind: type[Section], error: Any, where: str) -> str:
    """What to say of a name that is in no row of the table."""
    _, _, choice = _located(kind, error["loc"])
    assert choice is not None
    try:
        choose(choice.kinds, choice.name(error["input"]), f"{where}.{choice.key}")
    except UserError as refusal:
        return str(refusal)
    raise AssertionError("pydantic knows no other kinds than the table")


def _located(kind: type[Section], location: tuple) -> tuple[list[str], Any, Variants | None]:
    """A pydantic location, which has the names of kinds and of the branches of unions in it, as a setting's own keys.

    Returns the JSON keys; the type of what they lead to, as far as it has keys itself; and, if a key decides on that
    type, its Variants.
    """
    keys: list[str] = []
    inside: Any = kind
    choice = None
    for part in location:
        if isinstance(inside, Variants):  # part is the name of the kind
            choice, inside = inside, inside.kinds[part]
            continue
        branch = next((one for one in typing.get_args(inside) if _is_branch(one, part)), None)
        if branch is not None and not _is_table(inside):
            inside = branch
            continue
        if not _is_section(inside) and not _is_table(inside):
            break
        keys.append(str(part))
        inside, choice = _under(inside, part), None
    return keys, inside, inside if isinstance(inside, Variants) else choice


def _under(inside: Any, key: Any) -> Any:
    """What a key of a section or of a table leads to."""
    if _is_table(inside):
        return typing.get_args(inside)[1]
    field = inside.model_fields.get(key)
    if field is None:
        return None
    return next((one for one in field.metadata if isinstance(one, Variants)), field.annotation)


def _is_branch(kind: Any, part: Any) -> bool:
    """Whether part of a location is the name that pydantic gives to this branch of a union."""
    return str(part).startswith("dict[") if _is_table(kind) else _is_section(kind) and part == kind.__name__


def _is_table(kind: Any) -> bool:
    return typing.get_origin(kind) is dict


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
