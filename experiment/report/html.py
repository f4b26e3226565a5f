"""Pages of HTML from the templates: one file each, which reads nothing else, and runs no script but ours."""

import base64
import contextlib
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from utils import files
from utils.console import say
from utils.errors import joined_lines
from utils.names import printable

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Table:
    """Text to show as a table. words: columns that are aligned left; the others hold numbers.

    bars: numbers of one column, 0 to 1, drawn behind its cells; {column: [one for each row]}.
    """

    header: list[str]
    rows: list[list[str]]
    words: tuple[int, ...] = (0,)
    bars: dict[int, list[float]] | None = None


def render(template: str, **values: Any) -> str:
    """A page: the template of this name filled with values, all of which are escaped but for Markup."""
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    page = _environment().get_template(f"{template}.html.jinja")
    return page.render(values, style=Markup(style), script=Markup(script), script_digest=digest)


@functools.cache
def _environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    found.tests["table"] = lambda value: isinstance(value, Table)
    return found


def _printable(value: Any) -> Any:
    """Text in which nothing turns the direction of writing or ends a line unseen."""
    return printable(value, keep="\n") if isinstance(value, str) and not isinstance(value, Markup) else value


@contextlib.contextmanager
def if_possible(path: Path) -> Iterator[None]:
    """Do without a page that cannot be made, whatever the cause: a line says so, and what follows runs.

    A page shows results; it must not cost any.
    """
    try:
        with files.if_possible(path):
            yield
    except Exception as error:
        say(f"{path} could not be made ({printable(joined_lines(error, 200))}); going on without it")
