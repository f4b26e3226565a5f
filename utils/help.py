"""What --help prints of the keys of a setting: values, defaults, and the descriptions at their declarations."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from utils.errors import UserError, nearest
from utils.sections import Section, Variants

WIDTH = 120
NAMES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
"""JSON Schema's words for types and limits, and ours."""


@dataclass(frozen=True)
class Key:
    """A key of a setting.

    readers: the kinds of its section that have it, if not all do, "method lsq, pact" say. of: its field in each kind.
    """

    name: str
    field: FieldInfo
    readers: str = ""
    of: dict[str, FieldInfo] = dataclass_field(default_factory=dict)

    def __str__(self) -> str:
        """Its name, values and default; below it its description."""
        of = self.of or {"": self.field}
        taken = _by_kind({kind: values(field) for kind, field in of.items()})
        default = _by_kind({kind: _default(field) for kind, field in of.items()})
        title = f"{self.name}: {taken}" + (f"; {default} by default" if default else "")
        title += f" ({self.readers})" if self.readers else ""
        return "\n    ".join([*textwrap.wrap(title, WIDTH, break_on_hyphens=False), *self._description()])

    def _description(self) -> list[str]:
        return (self.field.description or "").splitlines()


def _default(field: FieldInfo) -> str:
    return "" if field.is_required() else _plain(field.get_default())


def _by_kind(said: dict[str, str]) -> str:
    """What is said of all kinds or, where it differs, of which: '16 (digits), 32 (cifar10, cifar100)'."""
    kinds: dict[str, list[str]] = {}
    for kind, text in said.items():
        kinds.setdefault(text, []).append(kind)
    if len(kinds) == 1:
        return next(iter(kinds))
    return ", ".join(f"{text} ({', '.join(names)})" for text, names in kinds.items())


def explain(kind: type[Section], asked: str) -> str:
    """The keys of a section, or those of that name, in whichever sections. Raises UserError if there are none."""
    every = list(keys(kind))
    found = [key for key in every if key.name == asked or key.name.startswith(f"{asked}.")]
    found = found or [key for key in every if key.name.rpartition(".")[2] == asked]
    if not found:
        near = nearest(asked, {name for key in every for name in (key.name, key.name.partition(".")[0])})
        raise UserError(f"command line: --help {asked}: no such key" + (f", did you mean {near}?" if near else ""))
    return "\n".join(map(str, found))


def sections(kind: type[Section]) -> list[str]:
    """What --help can be asked for: the sections, and the keys that stand in none."""
    return list(dict.fromkeys(key.name.partition(".")[0] for key in keys(kind)))


def keys(kind: type[Section], before: str = "") -> Iterator[Key]:
    for name, field in kind.model_fields.items():
        variants = next((one for one in field.metadata if isinstance(one, Variants)), None)
        if variants is not None:
            yield from _of_variants(variants, f"{before}{name}.")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from keys(field.annotation, f"{before}{name}.")
        else:
            yield Key(f"{before}{name}", field)


def _of_variants(variants: Variants, before: str) -> Iterator[Key]:
    """Each key once; of those that only some kinds have, which."""
    fields: dict[str, FieldInfo] = {}
    for kind in variants.kinds.values():
        fields = kind.model_fields | fields
    for name in sorted(fields, key=lambda name: name != variants.key):
        readers = variants.readers(name)
        some = "" if len(readers) == len(variants.kinds) else f"{variants.key} {', '.join(readers)}"
        field = fields[name]
        if name == variants.key:
            choices: Any = Literal[tuple(variants.kinds)]
            field = FieldInfo(annotation=choices, default=variants.default, description=field.description)
            yield Key(f"{before}{name}", field)
            continue
        of = {kind: row.model_fields[name] for kind, row in variants.kinds.items() if name in row.model_fields}
        yield Key(f"{before}{name}", field, some, of)


def values(field: FieldInfo) -> str:
    """What values a key takes, in a few words: 'integer, at least 1' or '"sgd" or "adam"'."""
    annotation: Any = field.annotation
    for one in field.metadata:
        annotation = Annotated[annotation, one]
    return _values(TypeAdapter(annotation).json_schema())


def _values(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_values(one) for one in schema["anyOf"]))
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if choices:
        return " or ".join(map(_plain, choices)) if len(choices) < 4 else ", ".join(map(_plain, choices))
    if schema.get("type") == "array":
        return f"list of {_values(schema.get('items', {}))}"
    limits = [f"{word} {_number(schema[limit])}" for limit, word in LIMITS.items() if limit in schema]
    return ", ".join([NAMES.get(schema.get("type", ""), "table"), *limits])


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _plain(value: Any) -> str:
    return TypeAdapter(Any).dump_json(value).decode()
