"""One-line messages for invalid settings, with the nearest valid key or name."""

import json
import re
import typing
from collections.abc import Collection
from typing import Any

from utils.errors import UserError, choose, nearest
from utils.help import keys
from utils.sections import Section, Variants

SYNONYMS = {
    "learning_rate": "lr",
    "ema": "average",
    "batch": "batch_size",
    "bs": "batch_size",
    "wd": "weight_decay",
    "dataset": "name",
    "path": "root",
    "size": "image_size",
    "img_size": "image_size",
    "scheduler": "schedule",
    "warmup": "warmup_epochs",
    "bits": "weight_bits",
    "w_bits": "weight_bits",
    "a_bits": "act_bits",
    "pretrained": "weights",
    "optimizer": "name",
    "aa": "augment",
    "auto_augment": "augment",
    "augmentation": "augment",
    "mixup_alpha": "mixup",
    "cutmix_alpha": "cutmix",
    "random_erase": "random_erasing",
    "reprob": "random_erasing",
    "smoothing": "label_smoothing",
}
"""What other programs call a key."""


def one_line(kind: type[Section], error: Any, source: str, overridden: Collection[str]) -> str:
    """pydantic's error about a setting of this kind as file, key, what is wrong, the nearest right thing.

    source: the file, or nothing. overridden: dotted keys from the command line, which is named instead of the file.
    """
    location = error["loc"]
    keys, _, choice = _located(kind, location)
    unknown_name = choice is not None and error["type"] == "union_tag_invalid"
    dotted = ".".join([*keys, choice.key] if choice and unknown_name else keys)
    from_command_line = any(f"{dotted}.".startswith(f"{key}.") for key in overridden)
    where = ("command line: " if from_command_line else f"{source}: " if source else "") + dotted
    if choice and unknown_name:
        return _unknown_name(choice, error["input"], where)
    if error["type"] == "extra_forbidden":
        return where + _unknown_key(kind, location)
    message = error["msg"].removeprefix("Value error, ")
    shown = json.dumps(error["input"], default=str)
    word = nearest(str(error["input"]), re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", ""))))
    return f"{where}: {message[0].lower()}{message[1:]}, not {shown}" + (f" (nearest: {word})" if word else "")


def _unknown_key(kind: type[Section], location: tuple) -> str:
    """The message after a key that its section does not have."""
    section, inside, choice = _located(kind, location[:-1])
    readers = choice.readers(str(location[-1])) if choice else []
    if choice and readers:
        return f" is read by {', '.join(readers)}; {'.'.join([*section, choice.key])} is {location[-2]}"
    hint = _hint(kind, inside, str(location[-1]))
    return ": unknown key" + (f", did you mean {hint}?" if hint else "")


def _hint(kind: type[Section], inside: Any, word: str) -> str | None:
    """The key that was meant: a synonym or the most similar one of the section, or the same word of another."""
    usual = SYNONYMS.get(word.lower(), word.lower())
    for same in (usual, f"{usual}s"):
        if same in inside.model_fields:
            return same
    others = [key.name for key in keys(kind) if key.name.rpartition(".")[2] == usual]
    return others[0] if others else nearest(word, inside.model_fields)


def _unknown_name(choice: Variants, section: Any, where: str) -> str:
    """The message about a name that is not in the table."""
    try:
        choose(choice.kinds, choice.name(section), where)
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
