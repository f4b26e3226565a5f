"""Pages: what is put into them is text, and one that cannot be made costs nothing."""

import errno

import jinja2
import pytest

from experiment.report import html
from experiment.report.html import Table
from tests import browser

HOSTILE = "<script>alert(1)</script>\u202e\x1b"


def page(table: Table, **more) -> str:
    values = {"title": HOSTILE, "table": table, "links": [None] * len(table.rows), "baseline": None, "chart": ""}
    return html.render("sweep", **values, environment={HOSTILE: HOSTILE}, **more)


def test_names_are_text():
    made = page(Table([HOSTILE], [[HOSTILE]]))
    assert made.count("<script>") == 1, "ours"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\u202e\\x1b" in made
    assert not set(made) & {"\u202e", "\x1b"}


def test_a_page_reads_nothing_else_and_runs_our_script_alone():
    made = page(Table(["a"], []))
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-" in made
    assert "http" not in made.replace("http-equiv", ""), "no address of another file"


def test_a_value_that_a_template_misses_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        html.render("sweep", title="")


@pytest.mark.parametrize("error", [ValueError("odd\x1b"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_page_that_cannot_be_made_is_one_line(error, tmp_path, capsys):
    with html.if_possible(tmp_path / "report.html"):
        raise error
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path}/report.html could not be ")
    assert said[0].endswith("; going on without it")


NAME = "document.querySelector('table.sortable').tBodies[0].rows"
FIRST = f"[...{NAME}].map(row => row.cells[0].textContent.trim()).join(' ')"
SECOND = "document.querySelectorAll('table.sortable th button')[1]"


@pytest.mark.skipif(browser.path() is None, reason=f"none of {', '.join(browser.NAMES)} is installed")
def test_a_click_on_a_column_sorts_by_it(tmp_path):
    rows = [["a", "10.5"], ["b", ""], ["c", "9"], ["d", "1,000"], ["e", "-2"]]
    (tmp_path / "page.html").write_text(page(Table(["name", "number"], rows)))
    with browser.opened(tmp_path / "browser") as opened:
        opened.open(tmp_path / "page.html", 800)
        assert opened.run(FIRST) == "a b c d e"
        opened.run(f"{SECOND}.click()")
        assert opened.run(FIRST) == "e c a d b", "as numbers, what is empty last"
        assert opened.run(f"{SECOND}.parentElement.getAttribute('aria-sort')") == "ascending"
        opened.run(f"{SECOND}.click()")
        assert opened.run(FIRST) == "d a c e b"
        assert opened.complaints() == []
