"""The page that compares runs: their accuracy and size, their curves over each other, and what they set otherwise."""

from pathlib import Path
from typing import NamedTuple

from experiment.report import charts, html
from experiment.report.summary_row import HEADER, SIZE, point, values
from utils import files


class Run(NamedTuple):
    """A finished run. rows: of metrics.csv. setting: its config.json, and its environment, by dotted keys."""

    name: str
    summary: dict
    rows: list[dict]
    setting: dict[str, str]


def write(runs: list[Run], path: Path) -> None:
    """Write the page."""
    page = html.render(
        "compare",
        title=f"{len(runs)} runs compared",
        table=html.Table(["run", *HEADER], [[run.name, *values(run.summary)] for run in runs], (0, 1, 2)),
        chart=charts.accuracy_against_size([point(run.name, run.summary) for run in runs], SIZE),
        curves=charts.curves({run.name: run.rows for run in runs}),
        differing=differing(runs),
        environment=None,
    )
    files.write_text(path, page)


def differing(runs: list[Run]) -> html.Table:
    """The keys in which not all runs are the same, with the value of each."""
    keys = dict.fromkeys(key for run in runs for key in run.setting)
    rows = [[key, *(run.setting.get(key, "") for run in runs)] for key in keys]
    header = ["key", *(run.name for run in runs)]
    return html.Table(header, [row for row in rows if len(set(row[1:])) > 1], tuple(range(len(header))))
