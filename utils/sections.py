"""The types that settings are made of: closed sections, kinds of a section, and values that several sections take."""

import os
import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
    WithJsonSchema,
    create_model,
)
from pydantic_core import CoreSchema

from utils.names import printable

FLOAT_BITS = 32
"""The number of bits that stands for float: not quantized."""


def _bits(value: int) -> int:
    if value != FLOAT_BITS and not 1 <= value <= 8:
        raise ValueError(f"{value} bits; choose 1..8, or 32 for float")
    return value


Bits = Annotated[int, AfterValidator(_bits), WithJsonSchema({"type": "integer", "enum": [*range(1, 9), FLOAT_BITS]})]


def _run_name(value: str) -> str:
    parts = value.split("/")
    if not all(re.fullmatch(r"[\w.=,+ -]+", part) and part.strip(". ") for part in parts):
        raise ValueError("a name is letters, digits and . = , + - _, with / between folders")
    return value


RunName = Annotated[str, AfterValidator(_run_name)]


def _path(value: str) -> str:
    if value != printable(value):
        raise ValueError("a path without control characters")
    return os.path.expanduser(value)


PathText = Annotated[str, AfterValidator(_path)]
"""A file or folder; ~ is the user's own."""


class Section(BaseModel):
    """A part of a setting: frozen, and closed to keys that it does not name. Field docstrings describe the keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    bare_key: ClassVar[str] = ""
    """The key that a text without = on the command line is a value of, if any."""
    bare_keys_are_a_list: ClassVar[bool] = False
    """Whether there may be several of them, of which that key is the list."""

    @classmethod
    def rename(cls, values: dict) -> list[str]:
        """Replace the old names of keys by the current ones, in place. Returns a notice for each."""
        return []

    @classmethod
    def adapt_to_overrides(cls, values: dict, overrides: Mapping[str, Any]) -> list[str]:
        """Remove from a file's values, in place, what overrides (by dotted key) make meaningless. Returns notices."""
        return []


NO_SOURCE: dict[str, Any] = {"use_attribute_docstrings": False}
"""Class keywords of sections that are built by create_model, whose bases have described all keys. Without them pydantic
searches the whole call stack for the source of each: a second of every start."""

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
    keys: dict[str, Any] = {key: (value, field)}
    title = f"{base.__name__} {'external' if name == OWN else name}"
    extra = own.model_config["extra"]  # or that of the common keys would count
    return create_model(title, __base__=(own, base), __cls_kwargs__=NO_SOURCE | {"extra": extra}, **keys)


S = TypeVar("S", bound=Section)


def part(section: Section, kind: type[S]) -> S:
    """The keys of a kind, which a section has among others."""
    return kind(**{key: getattr(section, key) for key in kind.model_fields})
