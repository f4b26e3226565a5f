"""The machinery of settings: files, overrides `section.key=value`, and mistakes in one line.

A setting is a Section of Sections. Each key is declared where it is read; experiment/settings.py combines them. `load`
reports a mistake in one line: file, key, what is wrong, the nearest right thing.
"""

import argparse
import contextlib
import functools
import itertools
import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import ValidationError, create_model

from utils.errors import UserError, nearest
from utils.mistakes import one_line
from utils.names import printable
from utils.sections import NO_SOURCE, Section, Variants

S = TypeVar("S", bound=Section)
LARGEST, DEEPEST = 2**20, 32
"""Bytes of a setting file, and brackets within brackets."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}; --help tells what there is")


def parser(description: str | None, default: str, choices: Iterable[str]) -> argparse.ArgumentParser:
    """The command line that all scripts share; `choices` are what --list can list."""
    cli = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False)
    about = "print this, or what the keys of a section or one key mean, and stop"
    cli.add_argument("-h", "--help", nargs="?", const="", metavar="KEY", help=about)
    cli.add_argument("-c", "--config", default=default, metavar="FILE", help=f"setting file (default: {default})")
    names = list(choices)
    cli.add_argument(
        "--list",
        nargs="?",
        const="",
        metavar="WHAT",
        help=f"print the names to choose from and stop: of {', '.join(names)}",
    )
    cli.add_argument("--print-config", action="store_true", help="print the resolved setting and stop")
    cli.add_argument("overrides", nargs="*", metavar="section.key=value", help="override a value of the file")
    return cli


def load(kind: type[S], path: str, texts: list[str]) -> S:
    """Read a setting file, apply the overrides `section.key=value` and check it all.

    A notice of each renamed key goes to stderr. Raises UserError in one line.
    """
    values = _read(path)
    for notice in kind.rename(values):
        _notify(f"{path}: {notice}")
    given = overrides(kind, texts, notify=True)
    for notice in kind.adapt_to_overrides(values, given):
        _notify(f"command line: {notice}")
    for key, value in given.items():
        _set(values, key.split("."), value, f"command line: {key}")
    return validate(kind, _with_lists(kind, values, given), path, set(given))


def _with_lists(kind: type[Section], values: dict, given: Mapping[str, Any]) -> dict:
    """The values, with a text a,b from the command line as a list of a and b where a list is asked for."""
    for at in [at for at, mistake in _mistakes(kind, values) if mistake == "list_type"]:
        key = next((key for key in given if isinstance(given[key], str) and _is_within(key.split("."), at)), None)
        if key is not None:
            _set_list(kind, values, key, given[key])
    return values


def _set_list(kind: type[Section], values: dict, key: str, text: str) -> None:
    """Set a key to the items of a text, as JSON or as text; to the text itself, where neither is of the right type."""
    items = text.split(",")
    for one in ([_json_or_text(item) for item in items], items, text):
        _set(values, key.split("."), one, f"command line: {key}")
        wrong = [at for at, mistake in _mistakes(kind, values) if mistake.endswith("_type")]
        if not any(_is_within(key.split("."), at) for at in wrong):
            return


def _mistakes(kind: type[Section], values: dict) -> list[tuple[list[str], str]]:
    """Where values are wrong, with the names of variants and of types among the keys, and pydantic's name of how."""
    try:
        kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        return [([str(part) for part in one["loc"]], one["type"]) for one in error.errors()]
    except (TypeError, ValueError):
        pass  # the check proper says what is wrong
    return []


def _is_within(key: list[str], at: list[str]) -> bool:
    """Whether a key's parts are among others, in their order."""
    rest = iter(at)
    return all(part in rest for part in key)


def _notify(text: str) -> None:
    print(printable(text), file=sys.stderr)


def overrides(kind: type[Section], texts: list[str], notify: bool = False) -> dict[str, Any]:
    """Dotted key -> value of `section.key=value` texts, under the current names of the keys.

    Values are JSON where they parse as JSON, else strings.
    """
    found: dict[str, Any] = {}
    bare: list[str] = []
    for text, behind in itertools.pairwise([*texts, ""]):
        key, equals, value = text.partition("=")
        if re.search(r"[\ud800-\udfff]", text):  # what stands for other bytes
            raise UserError(f"command line: {text} is not UTF-8")
        if not equals and kind.bare_key:
            if bare and not kind.bare_keys_are_a_list:
                raise UserError(
                    f"command line: {bare[0]} and {text}: one alone is the {kind.bare_key}; name the other's key"
                )
            bare.append(text)
            if kind.bare_key in found and len(bare) == 1:
                raise UserError(f"command line: {text} and {kind.bare_key}=...: name all {kind.bare_key} in one way")
            key, value = kind.bare_key, json.dumps(bare if kind.bare_keys_are_a_list else text)
        elif not equals:
            hint = f", did you mean {text}={behind}?" if behind and "=" not in behind and "." in text else ""
            raise UserError(f"command line: {text!r} is not of the form key=value, or section.key=value{hint}")
        elif key == kind.bare_key and bare:
            raise UserError(f"command line: {bare[-1]} and {text}: name all {key} in one way")
        one = {key: _json_or_text(value)}
        for notice in kind.rename(one):
            if notify:
                _notify(f"command line: {notice}")
        for name in one:
            found.pop(name, None)  # the last one counts, and is set last
        found |= one
    return found


def rename(values: dict, table: Mapping[str, str]) -> list[str]:
    """Replace old dotted keys of a table by the new ones, in place, in sections or dotted; returns a notice of each.

    Raises UserError if the setting has both.
    """
    notices = []
    for old, new in table.items():
        for there, key, now in _places(values, old.split("."), new.split(".")):
            if now in there:
                raise UserError(f"{old} is now {new}, and the setting has both")
            renamed = {now if name == key else name: value for name, value in there.items()}
            there.clear()
            there.update(renamed)  # in the order they were in
            notices.append(f"{old} is now {new}")
    return notices


def rename_values(values: dict, key: str, table: Mapping[Any, Any]) -> list[str]:
    """Replace old values of a dotted key by those of today, in place, in a sweep's list, too; returns a notice of each.

    table: by the old value as JSON writes it.
    """
    notices = []
    for there, name, _ in _places(values, key.split("."), key.split(".")):
        found = there[name] if isinstance(there[name], list) else [there[name]]
        now = [table.get(json.dumps(value), value) for value in found]
        notices += [f"{key}: {json.dumps(old)} is now {new}" for old, new in zip(found, now, strict=True) if old != new]
        there[name] = now if isinstance(there[name], list) else now[0]
    return notices


def _places(values: Any, old: list[str], new: list[str]) -> Iterator[tuple[dict, str, str]]:
    """Where an old key is: (the dict that has it, the key as written there, the new key in the same form)."""
    if not isinstance(values, dict):
        return
    for count in range(1, len(old) + 1):
        key = ".".join(old[:count])
        if key in values and count == len(old):
            yield values, key, ".".join(new[:count])
        elif key in values:
            yield from _places(values[key], old[count:], new[count:])


@contextlib.contextmanager
def blame(source: str, overridden: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Open the message of a UserError raised within with the name of the setting file.

    overridden: what the command line gave, by key. A message that begins with one of these keys names the command line
    instead; one that begins with such a value, a path, say, names that and the key.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{_culprit(str(error), overridden or {}) or source}: {error}") from None


def _culprit(message: str, given: Mapping[str, Any]) -> str | None:
    begins = re.match(r"[\w.]*", message)
    if begins is not None and any(begins[0] == key or begins[0].startswith(f"{key}.") for key in given):
        return "command line"
    for key, value in given.items():
        for text in value if isinstance(value, list) else str(value).split(","):
            if isinstance(text, str) and message.startswith((f"{text}:", f"{text}/")):
                return f"command line: {key}"
    return None


def validate(kind: type[S], values: dict, source: str, overridden: Collection[str] = ()) -> S:
    """`values` as an immutable, checked `kind`; `source` (a file name), if any, opens the message of a mistake."""
    try:
        return kind.model_validate_json(json.dumps(values))
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):  # a tensor, say, in the setting of a checkpoint
            raise UserError(f"{source}: not plain values: {error}") from None
        raise UserError(one_line(kind, error.errors()[0], source, overridden)) from None


def validate_section(section: str, kinds: Variants, values: dict, source: str = "") -> Any:
    """The values of a single section as one of its kinds."""
    return getattr(validate(_holder(section, kinds), {section: values}, source), section)


@functools.cache
def _holder(section: str, kinds: Variants) -> type[Section]:
    """A setting of this section alone."""
    keys: dict[str, Any] = {section: (Annotated[Section, kinds], ...)}
    return create_model("Holder", __base__=Section, __cls_kwargs__=NO_SOURCE, **keys)


def vary(settings: S, changes: dict[str, Any], source: str) -> S:
    """The settings with these changes, by dotted key. Values that were set stay; defaults are filled in again."""
    values = json.loads(settings.model_dump_json(exclude_unset=True))
    for key, value in changes.items():
        _set(values, key.split("."), value, f"{source}: {key}")
    return validate(type(settings), values, source)


def _read(path: str) -> dict:
    try:
        if Path(path).stat().st_size > LARGEST:
            raise UserError(f"{path}: larger than a setting can be ({LARGEST / 1e6:.0f} MB)")
        values = _parsed(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        neighbours = [str(p) for p in Path(path).parent.glob("*.json")] if Path(path).parent.is_dir() else []
        hint = nearest(path, neighbours)
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


def _refuse(word: str) -> NoReturn:
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


def _set(values: dict, keys: list[str], value: Any, where: str) -> None:
    """Set a value by its keys, in place; creates sections that are missing."""
    if len(keys) > DEEPEST:
        raise UserError(f"{where[:80]} ...: more than {DEEPEST} keys deep")
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UserError(f"{where}: {key} is not a section")
    values[keys[-1]] = value


def as_name(text: str) -> str:
    """A run's name that is as near to a text as a name can be."""
    return re.sub(r"[^\w.=,+ -]", "_", text)
