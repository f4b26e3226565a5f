"""What `evaluate.py compare=[...]` does: one page of several finished runs, from the files in their folders."""

import csv
import json
from pathlib import Path
from typing import Any

from experiment.report import compare_report
from experiment.report.accuracy_table import accuracy_table
from experiment.report.compare_report import Run
from experiment.report.summary_row import HEADER, point, values
from experiment.settings import EvaluateSettings
from utils import files
from utils.console import say
from utils.errors import UserError
from utils.runs.folder import SETTING, SUMMARY, flat, read_summary
from utils.table import text_table

USUAL_FOLDER = "runs/compare"
READ = ("compare", "output", "note")
"""Keys that count; no checkpoint is measured."""
UNCOMPARED = ("run.name", "run.dir", "note", "environment.git_commit")
WORDS = ("stage",)
"""Columns of metrics.csv that are no numbers."""
NEEDED = {"epoch", "stage", "train_loss", "train_top1"}
"""Columns of metrics.csv that every epoch has."""


def find_conflict(settings: EvaluateSettings, keys: list[str]) -> str | None:
    """Why one of these keys has no effect beside `compare`; None if none is given."""
    unread = [key for key in keys if key.partition(".")[0] not in READ] if settings.compare else []
    return f"{unread[0]}: `compare` reads the results of finished runs, and measures nothing" if unread else None


def check(folders: list[str]) -> None:
    """Raise UserError for a folder that holds no finished run."""
    for folder in map(Path, folders):
        if not (folder / SUMMARY).is_file():
            cells = any(folder.glob(f"*/{SUMMARY}"))
            why = "is a sweep's: name the folders of its cells" if cells else f"holds no finished run ({SUMMARY})"
            raise UserError(f"compare: {folder} {why}")


def compare(settings: EvaluateSettings) -> None:
    """Print the table of all runs and write report.html."""
    runs = [read(Path(folder), name) for folder, name in zip(settings.compare, _names(settings.compare), strict=True)]
    folder = files.make_folder(Path(settings.output or USUAL_FOLDER), "output")
    say(text_table(["", *HEADER], [[run.name, *values(run.summary)] for run in runs]))
    compare_report.write(runs, folder / "report.html")
    say(f"\nreport.html in {folder}")


def read(folder: Path, name: str) -> Run:
    """The run in this folder. Raises UserError for files that train.py did not write so."""
    summary = read_summary(folder)
    try:
        values(summary), point(name, summary), accuracy_table(summary)
        setting = _json(folder / SETTING) | {"environment": _json(folder / "environment.json")}
        return Run(name, summary, _rows(folder / "metrics.csv"), _shown(setting))
    except (KeyError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise UserError(
            f"compare: {folder}: not what train.py writes there ({type(error).__name__}: {error})"
        ) from None


def _names(folders: list[str]) -> list[str]:
    """The last part of each path, or the paths if these are not all different."""
    last = [Path(folder).resolve().name for folder in folders]
    return last if len(set(last)) == len(last) else folders


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _rows(path: Path) -> list[dict]:
    """Of metrics.csv; [] of a run that trained nothing."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{k: v if k in WORDS else float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    if not all(row.keys() >= NEEDED for row in rows):
        raise ValueError(f"{path.name} lacks some of {', '.join(sorted(NEEDED))}")
    return rows


def _shown(setting: dict) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in flat(setting) if key not in UNCOMPARED}
