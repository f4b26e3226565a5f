"""Functions that a setting names as `package.module:function`. Nothing is evaluated: a name is imported and called."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.errors import UserError, first_line, nearest

Function = Callable[..., Any]


def is_external(name: str) -> bool:
    return ":" in name


def member(source: str, name: str, where: str) -> Function:
    """The function of that name in the module `source`. `where`, a key, opens the message of a UserError."""
    _find_modules_in_current_folder()
    try:
        module = importlib.import_module(source)
    except Exception as error:
        raise UserError(f"{where}: cannot import {source or 'nothing'}: {first_line(error, 200)}") from None
    found = getattr(module, name, None)
    if not callable(found):
        hint = nearest(name, [n for n in dir(module) if callable(getattr(module, n))])
        raise UserError(f"{where}: {source} has no function {name!r}" + (f", did you mean {hint}?" if hint else ""))
    return found


def call(function: Function, arguments: dict[str, Any], where: str) -> Any:
    """The function's result. Raises UserError where it fails, unless it does so itself."""
    try:
        return function(**arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where} cannot be called with {_shown(arguments)}: {first_line(error, 200)}") from error


def is_own(source: str, allowed_package: str) -> bool:
    """Whether a module is the user's, so that a checkpoint may name its functions: not Python's, not an installed
    package's, and of this program's packages only `allowed_package`.

    Of others any function could be called, with any arguments, before it turns out to return something else.
    """
    _find_modules_in_current_folder()
    package = source.partition(".")[0]
    if not package.isidentifier() or package in sys.stdlib_module_names:
        return False
    found = importlib.util.find_spec(package)
    places = [Path(place) for place in (found.submodule_search_locations or [found.origin or "/"])] if found else []
    root = Path(__file__).parent.parent
    is_this_project = package != allowed_package and any(place.parent == root for place in places)
    return not is_this_project and not any("-packages" in part for place in places for part in place.parts)


def _find_modules_in_current_folder() -> None:
    """Let modules in the current folder be found, wherever the scripts are."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _shown(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
