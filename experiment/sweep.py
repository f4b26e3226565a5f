"""Sweeps: a run for every combination of some values, and one table and picture of them all.

{"quant.act_bits": [2, 4], "run.seed": [1, 2]} are 2 x 2 cells. An axis may also name whole groups of keys:
{"recipe": {"float": {"quant.method": "float"}, "QAT": {"quant.float_epochs": 0}}}. The last axis makes the table's
columns, run.seed means and standard deviations.
"""

import itertools
import json
import statistics
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.report import plot
from utils import files
from utils.config import TrainSettings, as_name, vary
from utils.console import say
from utils.distributed import Processes
from utils.errors import UserError
from utils.runs.folder import finished, request, summary
from utils.table import markdown_table

SEED = "run.seed"
FIXED = ("run.dir", "run.name", "sweep")


@dataclass(frozen=True)
class Cell:
    """One combination: axis -> label, and dotted key -> value."""

    labels: dict[str, str]
    overrides: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its folder."""
        labels = ",".join(f"{axis.removeprefix('run.')}={label}" for axis, label in self.labels.items())
        return as_name(labels).replace(" ", "_")


def cells(sweep: dict[str, list | dict]) -> list[Cell]:
    """Every combination, the last axis fastest; none of no sweep."""
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
    for key in [key for cell in found for key in cell.overrides if any(_meet(key, name) for name in FIXED)]:
        raise UserError(f"sweep: {key} is the same for all cells; each has a folder of its own in the sweep's")
    return found


def check_given(planned: list[Cell], given: Iterable[str]) -> None:
    """Refuse keys given on the command line where a cell lays a value of its own over them."""
    for cell, key in itertools.product(planned, given):
        own = next((own for own in cell.overrides if _lays_over(own, key)), None)
        if own:
            raise UserError(f"command line: {key}: cell {cell.name} of the sweep has a {own} of its own")


def _lays_over(key: str, other: str) -> bool:
    """Whether a value for this key is one for the other key, too."""
    return f"{other}.".startswith(f"{key}.")


def _meet(key: str, other: str) -> bool:
    return _lays_over(key, other) or _lays_over(other, key)


def _axis(key: str, sweep: dict) -> str:
    """The last part of the key, if no other axis ends like it; the seed keeps its whole name."""
    short = key.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == short for other in sweep) == 1
    return short if alone and key != SEED else key


def runs(
    settings: TrainSettings, planned: list[Cell], check: Callable[[TrainSettings, str], TrainSettings]
) -> list[tuple[Cell, TrainSettings]]:
    """The cells with the settings of each, all of them checked. check(settings, name of the cell)."""
    single = settings.model_copy(update={"sweep": {}})
    varied = [(cell, vary(single, cell.overrides, f"cell {cell.name}")) for cell in planned]
    return [(cell, check(own, cell.name)) for cell, own in varied]


def run(
    folder: Path,
    planned: list[tuple[Cell, TrainSettings]],
    train: Callable[[TrainSettings, Processes], None],
    baseline: Callable[[], dict | None],
    title: str,
    processes: Processes,
) -> None:
    """Train every cell that is not finished, each in a folder of its own; keep table.md, .csv and .png up to date.

    A cell that fails is reported, its error.txt tells where, and passed over; not where several processes train it,
    since some may still wait for the others. Raises UserError at the end if one did. baseline() gives the float
    accuracy that all cells start from, or None.
    """
    failed, rows = {}, []
    reference = baseline() if processes.is_main else None
    for i, (cell, settings) in enumerate(planned):
        home = folder / cell.name
        done = processes.broadcast_object(request(settings.run.resume) != "never" and finished(home, settings))
        say(f"\n[{i + 1}/{len(planned)}] {cell.name}" + (": finished before" if done else ""))
        try:
            if not done:
                train(settings, processes)
        except Exception as error:  # whatever it is, the other cells are to run
            if processes.world_size > 1 or isinstance(error, BrokenPipeError):
                raise
            failed[cell.name] = " ".join(str(error).split()) or type(error).__name__
            files.write_text(files.make_folder(home, "run.dir") / "error.txt", traceback.format_exc())
            say(f"failed: {failed[cell.name]}")
            continue
        if processes.is_main:
            (home / "error.txt").unlink(missing_ok=True)  # of an earlier try
            rows.append((cell, summary(home)))
            write_tables(folder, rows, reference, title)
    if rows:
        say("\n" + (folder / "table.md").read_text())
    if failed:
        name, why = next(iter(failed.items()))
        raise UserError(f"{len(failed)} of {len(planned)} cells failed; {name}: {why}")


def title(runs: list[TrainSettings], name: str) -> str:
    """What the table of a sweep of that name is of: its nets, and its data."""
    nets, datasets = (", ".join(dict.fromkeys(getattr(one, part).name for one in runs)) for part in ("model", "data"))
    return f"{nets} on {datasets}: {name}"


def write_tables(folder: Path, rows: list[tuple[Cell, dict]], baseline: dict | None, title: str) -> None:
    """table.csv (a row a cell), table.md and table.png (seeds gathered)."""
    files.write_csv(folder / "table.csv", [_flat(cell, summary) for cell, summary in rows])
    axes = [axis for axis in rows[0][0].labels if axis != SEED]
    text = [f"# {title}", "", _baseline_line(baseline), ""]
    if len(axes) >= 2:
        text += [_grid(rows, axes), "", _agreement_line(rows)]
    else:
        text += [_list(rows, axes)]
    files.write_text(folder / "table.md", "\n".join(text) + "\n")
    groups = [(labels, [figure(s)[1] for s in summaries]) for labels, summaries in _gathered(rows, axes)]
    plot.sweep(groups, axes, baseline and baseline["top1"], title, folder / "table.png")


def figure(summary: dict) -> tuple[str, float]:
    """What a cell is judged by: top-1 on its first integer engine, else simulated, else in float."""
    accuracy = summary["accuracy"]
    engine = next((name for name in accuracy if name not in ("float", "fake_quant")), None)
    name = engine or ("fake_quant" if "fake_quant" in accuracy else "float")
    return name, accuracy[name]["top1"]


def mean_text(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def _gathered(rows: list[tuple[Cell, dict]], axes: list[str]) -> Iterator[tuple[dict[str, str], list[dict]]]:
    """Cells that differ by their seed alone, together."""
    found: dict[tuple, list[dict]] = {}
    for cell, measured in rows:
        found.setdefault(tuple(cell.labels[axis] for axis in axes), []).append(measured)
    for labels, summaries in found.items():
        yield dict(zip(axes, labels, strict=True)), summaries


def _grid(rows: list[tuple[Cell, dict]], axes: list[str]) -> str:
    groups = [(tuple(labels.values()), summaries) for labels, summaries in _gathered(rows, axes)]
    columns = list(dict.fromkeys(labels[-1] for labels, _ in groups))
    lines: dict[tuple, dict[str, str]] = {}
    for labels, summaries in groups:
        lines.setdefault(labels[:-1], {})[labels[-1]] = mean_text([figure(s)[1] for s in summaries])
    header = [", ".join(axes[:-1]), *[f"{axes[-1]} {column}" for column in columns]]
    body = [[", ".join(key), *[line.get(column, "") for column in columns]] for key, line in lines.items()]
    return markdown_table(header, body)


def _list(rows: list[tuple[Cell, dict]], axes: list[str]) -> str:
    kinds = list(dict.fromkeys(kind for _, summary in rows for kind in summary["accuracy"]))
    header = [axes[0] if axes else "", *[f"{kind.replace('fake_quant', 'simulated')}, %" for kind in kinds]]
    body = []
    for labels, summaries in _gathered(rows, axes):
        values = [[s["accuracy"][kind]["top1"] for s in summaries if kind in s["accuracy"]] for kind in kinds]
        agreed = _agreements(summaries)
        minutes = statistics.mean(s["seconds"] for s in summaries) / 60
        body.append(
            [
                next(iter(labels.values()), "all"),
                *[mean_text(v) if v else "" for v in values],
                f"{min(agreed):.2f}" if agreed else "",
                f"{minutes:.1f}",
            ]
        )
    return markdown_table([*header, "agreement, %", "minutes"], body)


def _baseline_line(baseline: dict | None) -> str:
    return "Top-1, %." + (f" Float, which every cell starts from: {baseline['top1']:.2f}." if baseline else "")


def _agreement_line(rows: list[tuple[Cell, dict]]) -> str:
    agreed = _agreements([summary for _, summary in rows])
    kinds = ", ".join(dict.fromkeys(figure(summary)[0] for _, summary in rows))
    least = min(agreed, default=None)
    if least is None:
        return f"Measured on {kinds}."
    share = "all images" if least == 100 else f"{least:.2f} % of the images or more"
    return f"Measured on {kinds}. Predictions agree with the simulation's on {share}."


def _agreements(summaries: list[dict]) -> list[float]:
    return [value for summary in summaries for value in summary["agreement"].values()]


def _flat(cell: Cell, summary: dict) -> dict:
    accuracy = {f"{kind}_top1": score["top1"] for kind, score in summary["accuracy"].items()}
    agreement = {f"{kind}_agreement": value for kind, value in summary["agreement"].items()}
    size = {f"{kind}_mb": value for kind, value in summary["size_mb"].items()}
    return cell.labels | accuracy | agreement | size | {"seconds": summary["seconds"]}


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
