"""The documents: links in them lead somewhere, and setting files that they name exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "setting/tables/README.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a Markdown file."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(document):
    for link in LINK.findall(document.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


# docs/extending.md names files that its reader creates; tests/test_extending.py creates them
@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if path.name != "extending.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_file_that_a_document_names_exists(document):
    folders = ("data", "models", "quant", "utils", "experiment", "setting", "tests", "benchmarks")
    for path in re.findall(rf"`((?:{'|'.join(folders)})/[\w/.]+\.(?:py|json|md))`", document.read_text()):
        assert (ROOT / path).exists(), path


def test_the_readme_can_be_read_in_one_sitting():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
