"""What --help prints of the keys of a setting: values, defaults, and the descriptions at their declarations."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from utils.errors import UserError, nearest
from utils.sections import Section, Variants

NAMES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
"""JSON Schema's words for types and limits, and ours."""


@dataclass(frozen=True)
class Key:
    """A key of a setting. readers: the kinds of its section that have it, if not all do, "method lsq, pact" say."""

    name: str
    field: FieldInfo
    readers: str = ""

    def __str__(self) -> str:
        """Its name, values and default; below it its description."""
        default = "" if self.field.is_required() else f"; {_plain(self.field.get_default())} by default"
        title = f"{self.name}: {values(self.field)}{default}" + (f" ({self.readers})" if self.readers else "")
        return "\n    ".join([title, *(self.field.description or "").splitlines()])


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
        yield Key(f"{before}{name}", field, some)


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
    limits = [f"{word} {schema[limit]:g}" for limit, word in LIMITS.items() if limit in schema]
    return ", ".join([NAMES.get(schema.get("type", ""), "table"), *limits])


def _plain(value: Any) -> str:
    return TypeAdapter(Any).dump_json(value).decode()
