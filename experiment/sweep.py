"""Sweeps: a run for every combination of some values, and one table and picture of them all.

{"quant.act_bits": [2, 4], "run.seed": [1, 2]} gives 2 x 2 cells. An axis may also name groups of keys:
{"recipe": {"float": {"quant.method": "float"}, "QAT": {"quant.float_epochs": 0}}}. The last axis becomes the table's
columns; cells that differ only in run.seed are reported as mean and standard deviation.
"""

import contextlib
import functools
import itertools
import json
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiment import inputs
from experiment.report import html, sweep_report
from experiment.report.sweep_table import SEED, Row, write_tables
from experiment.run_folder import run_folder
from experiment.settings import Axis, SweepSettings, TrainSettings
from utils import files
from utils.config import as_name, blame, vary
from utils.console import say
from utils.distributed import Processes
from utils.errors import UserError, joined_lines
from utils.runs.folder import read_summary

FIXED = ("run.dir", "run.name", "sweep")
"""Keys that no cell may set, since they are the same for the whole sweep."""


@dataclass(frozen=True)
class Cell:
    """One combination of values. labels: {axis: label}. overrides: {dotted key: value}."""

    labels: dict[str, str]
    overrides: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the cell, which is also the name of its folder."""
        labels = ",".join(f"{axis.removeprefix('run.')}={label}" for axis, label in self.labels.items())
        return as_name(labels).replace(" ", "_")


Planned = list[tuple[Cell, TrainSettings]]
"""The cells of a sweep with their checked settings."""


def cells(sweep: dict[str, Axis]) -> list[Cell]:
    """Every combination, the last axis varying fastest; [] without axes. Raises UserError for invalid ones."""
    if not sweep:
        return []
    axes = []
    for key, values in sweep.items():
        if not values:
            raise UserError(f"sweep.{key}: nothing to run over")
        groups = list(values.items()) if isinstance(values, dict) else [(_label(v), {key: v}) for v in values]
        axes.append([(_axis(key, sweep), label, overrides) for label, overrides in groups])
    found = [
        Cell(
            {axis: label for axis, label, _ in choice},
            {key: value for _, _, overrides in choice for key, value in overrides.items()},
        )
        for choice in itertools.product(*axes)
    ]
    for cell, other in itertools.combinations(found, 2):
        if cell.name == other.name:
            raise UserError(f"sweep: two cells would be called {cell.name}")
    for key in [key for cell in found for key in cell.overrides if any(_overlap(key, name) for name in FIXED)]:
        raise UserError(f"sweep: {key} is the same for all cells; each has a separate folder inside the sweep's")
    return found


def find_conflict(settings: TrainSettings, keys: list[str]) -> str | None:
    """Why one of these keys cannot be given on the command line: a cell of the sweep replaces it; None if none does."""
    for cell, key in itertools.product(cells(settings.sweep.axes), keys):
        own = next((own for own in cell.overrides if _contains(own, key)), None)
        if own:
            return f"{key}: cell {cell.name} of the sweep sets {own} itself"
    return None


def _contains(key: str, other: str) -> bool:
    """Whether a value for this dotted key also sets the other key."""
    return f"{other}.".startswith(f"{key}.")


def _overlap(key: str, other: str) -> bool:
    return _contains(key, other) or _contains(other, key)


def _axis(key: str, sweep: dict) -> str:
    """The axis name of a key: its last part, unless two axes have the same last part; run.seed keeps its whole name."""
    short = key.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == short for other in sweep) == 1
    return short if alone and key != SEED else key


def runs(settings: TrainSettings, planned: list[Cell], check: Callable[[TrainSettings, str], TrainSettings]) -> Planned:
    """Every cell with its checked settings. check(settings, name of the cell) checks and resolves them."""
    single = settings.model_copy(update={"sweep": SweepSettings()})
    varied = [(cell, vary(single, cell.overrides, f"cell {cell.name}")) for cell in planned]
    return [(cell, _checked(cell, own, check)) for cell, own in varied]


def _checked(
    cell: Cell, settings: TrainSettings, check: Callable[[TrainSettings, str], TrainSettings]
) -> TrainSettings:
    with blame(f"cell {cell.name}"):
        return check(settings, cell.name)


class Ended(NamedTuple):
    """A cell's run is over. at: its place among the planned ones. why: why it failed, or None."""

    at: int
    why: str | None


def one_by_one(
    folder: Path, planned: Planned, train: Callable[[TrainSettings, Processes], None], processes: Processes
) -> Generator[Ended]:
    """Train every cell that is not finished, one after the other, with train(settings, processes).

    A cell that fails leaves its traceback in error.txt, and the others follow. With several processes the first failure
    ends the sweep, since other processes may still wait for the failed one.
    """
    for at, (cell, settings) in enumerate(planned):
        try:
            done = processes.from_main(functools.partial(is_finished, settings))
            say(f"\n{place(at, planned)}" + (": finished before" if done else ""))
            if not done:
                train(settings, processes)
        except Exception as error:  # whatever it is, the other cells are to run
            if processes.world_size > 1 or isinstance(error, BrokenPipeError):
                raise
            yield Ended(at, report_failure(folder / cell.name, error))
        else:
            yield Ended(at, None)


def place(at: int, planned: Planned) -> str:
    """How messages name a cell: [2/12] act_bits=4."""
    return f"[{at + 1}/{len(planned)}] {planned[at][0].name}"


def gather(
    folder: Path,
    planned: Planned,
    ends: Generator[Ended],
    baseline: Callable[[], dict | None],
    title: str,
    is_main: bool,
) -> None:
    """Run the cells; update table.md, .csv, .png and report.html whenever one ends. Only the main process writes.

    ends: trains the cells, and yields each as it ends, in any order. baseline(): the accuracy of the float weights that
    all cells start from, or None. title: of the table. Raises UserError at the end if cells failed.
    """
    failed: dict[int, str] = {}
    rows: dict[int, Row] = {}
    reference = baseline() if is_main else None
    with contextlib.closing(ends):
        for at, why in ends:
            cell, _ = planned[at]
            if why is not None:
                failed[at] = why
            elif is_main:
                (folder / cell.name / "error.txt").unlink(missing_ok=True)  # of an earlier attempt
                rows[at] = (cell.labels, read_summary(folder / cell.name))
                _write(folder, {planned[i][0].name: rows[i] for i in sorted(rows)}, reference, title)
    if rows and (folder / "table.md").is_file():
        say("\n" + (folder / "table.md").read_text(encoding="utf-8"))
    if failed:
        first = min(failed)
        raise UserError(f"{len(failed)} of {len(planned)} cells failed; {planned[first][0].name}: {failed[first]}")


def _write(folder: Path, rows: dict[str, Row], reference: dict | None, title: str) -> None:
    """Write the tables and the page of the cells that have ended, by name."""
    with files.if_possible(folder / "table.md"):
        write_tables(folder, list(rows.values()), reference, title)
    with html.if_possible(folder / "report.html"):
        shown = [(name, *row) for name, row in rows.items()]
        sweep_report.write(shown, reference, title, folder / "report.html")


def is_finished(settings: TrainSettings) -> bool:
    """Whether the folder of a cell holds its results, and run.resume does not ask for another run."""
    asks_for_another = run_folder(settings).resume == "never"
    return not asks_for_another and run_folder(settings, inputs.read(settings)).is_finished()


def report_failure(folder: Path, error: Exception) -> str:
    """Print why a cell failed and write the current traceback to its error.txt. Returns the reason in one line."""
    reason = joined_lines(error)
    trace = traceback.format_exc()
    with files.if_possible(folder / "error.txt"):
        files.write_text(folder / "error.txt", trace)
    say(f"failed: {reason}")
    return reason


def title(runs: list[TrainSettings], name: str) -> str:
    """The title of the table of a sweep: its models, its datasets and its name."""
    models, datasets = (", ".join(dict.fromkeys(getattr(one, part).name for one in runs)) for part in ("model", "data"))
    return f"{models} on {datasets}: {name}"


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
