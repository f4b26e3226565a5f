"""The page of a sweep: its cells, and their accuracy against their size."""

from pathlib import Path
from urllib.parse import quote

from experiment.report import charts, html
from experiment.report.summary_row import HEADER, SIZE, point, values
from utils import files
from utils.environment import environment

Cell = tuple[str, dict[str, str], dict]
"""The name of a cell's folder, its labels by axis, and its summary.json."""


def write(cells: list[Cell], baseline: dict | None, title: str, path: Path) -> None:
    """Write the page. baseline: accuracy of the float weights that all cells start from, or None."""
    header = [*cells[0][1], *HEADER, "minutes"]
    rows = [[*labels.values(), *values(summary), f"{summary['seconds'] / 60:.1f}"] for _, labels, summary in cells]
    words = tuple(range(len(cells[0][1]) + 2))  # the model and the method, too
    page = html.render(
        "sweep",
        title=title,
        table=html.Table(header, rows, words),
        links=[_link(path.parent, name) for name, _, _ in cells],
        baseline=None if baseline is None else f"{baseline['top1']:.2f}",
        chart=charts.accuracy_against_size([point(_label(labels), summary) for _, labels, summary in cells], SIZE),
        environment=environment(),
    )
    files.write_text(path, page)


def _link(folder: Path, cell: str) -> str | None:
    """To the page of a cell; None if it has none, as those of earlier versions."""
    return f"{quote(cell)}/report.html" if (folder / cell / "report.html").is_file() else None


def _label(labels: dict[str, str]) -> str:
    return ", ".join(labels.values() if len(labels) == 1 else map("=".join, labels.items())) or "all"
