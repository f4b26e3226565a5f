"""Functions that a setting names as `package.module:function`. Nothing is evaluated: a name is imported and called.

Whose code runs: what the user names, on the command line or in a setting file, is imported from wherever Python finds
it, in the working directory first. What a checkpoint names, whose setting may be a stranger's, is called if it is

- a model or dataset of the tables, of torchvision or of timm; or
- defined in a module of the user's: in the working directory, or where else they let Python look (PYTHONPATH). Not the
  user's are Python's modules, installed packages, this program, and what may have come with the checkpoint: a module
  beside it, or a package that it lies in.

`trust=true`, `trust=package.module:function`, or naming the function in one's own setting, lifts this.
`check_may_call` is the one check. docs/security.md says it to users.
"""

import functools
import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from utils.errors import UserError, first_line, nearest

Function = Callable[..., Any]
PACKAGES = ("benchmarks", "data", "experiment", "models", "quant", "setting", "tests", "utils")
SCRIPTS = ("train", "evaluate", "latency")
PROJECT = frozenset(PACKAGES + SCRIPTS)
"""This program, as imported from its folder, which may be the user's working directory, too."""
ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("torchvision.models.", "timm.models.")
"""Installed modules whose functions make models and do nothing else: a module of the user's may only import them."""
STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()


def is_external(name: str) -> bool:
    return ":" in name


def member(source: str, name: str, where: str) -> Function:
    """The function of that name in the module `source`, or, of a name Class.method, a method of one of its classes.

    `where`, a key, opens the message of a UserError.
    """
    _find_modules_in_current_folder()
    try:
        module = importlib.import_module(source)
    except Exception as error:
        raise UserError(f"{where}: cannot import {source or 'nothing'}: {first_line(error, 200)}") from None
    *holders, last = name.split(".")
    holder, path = module, source
    for part in holders:
        holder, path = _attribute(holder, part, path, where), f"{path}.{part}"
    return _attribute(holder, last, path, where)


def _attribute(holder: Any, name: str, path: str, where: str) -> Any:
    """What a module or a class, at this path, has of that name. Raises UserError if it cannot be called."""
    found = getattr(holder, name, None)
    if not callable(found):
        hint = nearest(name, [n for n in dir(holder) if callable(getattr(holder, n))])
        raise UserError(f"{where}: {path} has no function {name!r}" + (f", did you mean {hint}?" if hint else ""))
    return found


def call(function: Function, arguments: dict[str, Any], where: str) -> Any:
    """The function's result. Raises UserError where it fails, unless it does so itself."""
    try:
        return function(**arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where} cannot be called with {_shown(arguments)}: {first_line(error, 200)}") from error


def check_may_call(name: str, use: str, checkpoint: str | None, remedy: str) -> None:
    """Raise UserError if the rule of this module's docstring lets no checkpoint call the function of that name.

    use: what the checkpoint calls it as. checkpoint: its path. remedy: how to call the function all the same.
    """
    source, _, attribute = name.partition(":")
    package = source.partition(".")[0]
    if package.isidentifier() and package not in sys.stdlib_module_names and not _find(package):
        raise UserError(f"the checkpoint calls {name} as {use}: no module {package} here; start where {package} is")
    own = is_own(source)
    if own and checkpoint and _came_with(source, checkpoint):
        raise UserError(f"the checkpoint would call {name} as {use}, of a file that came with it; {remedy}")
    if not own or not _is_defined_in_own(member(source, attribute, "the checkpoint"), source):
        raise UserError(f"the checkpoint would call {name} as {use}; {remedy}")


def is_own(source: str) -> bool:
    """Whether a module is the user's: not Python's, not an installed package's, and not this program's."""
    package = source.partition(".")[0]
    places = [place.resolve() for place in _places(package)]
    if package in PROJECT and any(place.parent == ROOT for place in places):
        return False
    installed = any("-packages" in part for place in places for part in place.parts)
    return bool(places) and not installed and not any(place.is_relative_to(STANDARD_LIBRARY) for place in places)


def _find(package: str) -> ModuleSpec | None:
    """Where Python would import a package from, without importing it."""
    _find_modules_in_current_folder()
    try:
        return importlib.util.find_spec(package)
    except (ImportError, ValueError):  # of __main__, for example
        return None


def _places(package: str) -> list[Path]:
    """The file or the folders of a package, which is not imported; [] if there is none, or if it is Python's."""
    found = _find(package) if package.isidentifier() and package not in sys.stdlib_module_names else None
    if found is None or not (found.has_location or found.submodule_search_locations):
        return []
    return [Path(place).absolute() for place in (found.submodule_search_locations or [found.origin or "/"])]


def _came_with(source: str, checkpoint: str) -> bool:
    """Whether a module may have come with a checkpoint: it lies beside it, or in a package that this is in.

    Either may be a link, which may have come too: where it lies counts, and where it leads.
    """
    folders = [Path(checkpoint).resolve().parent, Path(checkpoint).parent.resolve()]
    found = _places(source.partition(".")[0])
    places = [place.resolve() for place in found] + [place.parent.resolve() / place.name for place in found]
    return any(folder == place.parent or folder.is_relative_to(place) for folder in folders for place in places)


def _is_defined_in_own(function: Function, source: str) -> bool:
    """Whether the module, which may only have imported the function, defines it, or another one that may be called."""
    while isinstance(function, functools.partial):
        function = function.func
    home = getattr(function, "__module__", None) or ""
    return home == source or home.startswith(LIBRARIES) or is_own(home)


def _find_modules_in_current_folder() -> None:
    """Let modules in the current folder be found, wherever the scripts are."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _shown(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
