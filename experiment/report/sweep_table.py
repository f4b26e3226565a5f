"""The tables of a sweep: table.md, table.csv and table.png."""

import statistics
from collections.abc import Iterator
from pathlib import Path

from experiment.report import plot
from utils import files
from utils.table import markdown_table

SEED = "run.seed"
"""The axis whose values are not shown but averaged over."""
Row = tuple[dict[str, str], dict]
"""A cell's labels by axis, and its summary.json."""


def write_tables(folder: Path, rows: list[Row], baseline: dict | None, title: str) -> None:
    """Write table.csv (a row for each cell), table.md and table.png (one value for all cells that differ
    only in run.seed).

    baseline: accuracy of the float weights that all cells start from, or None.
    """
    files.write_csv(folder / "table.csv", [_flat(labels, summary) for labels, summary in rows])
    axes = [axis for axis in rows[0][0] if axis != SEED]
    text = [f"# {title}", "", _baseline_line(baseline), ""]
    if len(axes) >= 2:
        text += [_two_axes_table(rows, axes), "", _agreement_line(rows)]
    else:
        text += [_one_axis_table(rows, axes)]
    files.write_text(folder / "table.md", "\n".join(text) + "\n")
    groups = [(labels, [headline_accuracy(s)[1] for s in summaries]) for labels, summaries in _gathered(rows, axes)]
    plot.sweep(groups, axes, None if baseline is None else baseline["top1"], title, folder / "table.png")


def headline_accuracy(summary: dict) -> tuple[str, float]:
    """(name, top-1) by which a cell is judged: of its first integer engine, else simulated, else float."""
    accuracy = summary["accuracy"]
    engine = next((name for name in accuracy if name not in ("float", "simulated")), None)
    name = engine or ("simulated" if "simulated" in accuracy else "float")
    return name, accuracy[name]["top1"]


def mean_text(values: list[float]) -> str:
    """'91.20', or of several seeds '91.20 ± 0.15': mean and standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def _gathered(rows: list[Row], axes: list[str]) -> Iterator[tuple[dict[str, str], list[dict]]]:
    """(labels, summaries) of cells that differ only in their seed."""
    found: dict[tuple, list[dict]] = {}
    for cell_labels, summary in rows:
        found.setdefault(tuple(cell_labels[axis] for axis in axes), []).append(summary)
    for labels, summaries in found.items():
        yield dict(zip(axes, labels, strict=True)), summaries


def _two_axes_table(rows: list[Row], axes: list[str]) -> str:
    """A table whose columns are the values of the last axis."""
    groups = [(tuple(labels.values()), summaries) for labels, summaries in _gathered(rows, axes)]
    columns = list(dict.fromkeys(labels[-1] for labels, _ in groups))
    lines: dict[tuple, dict[str, str]] = {}
    for labels, summaries in groups:
        lines.setdefault(labels[:-1], {})[labels[-1]] = mean_text([headline_accuracy(s)[1] for s in summaries])
    header = [", ".join(axes[:-1]), *[f"{axes[-1]} {column}" for column in columns]]
    body = [[", ".join(key), *[line.get(column, "") for column in columns]] for key, line in lines.items()]
    return markdown_table(header, body)


def _one_axis_table(rows: list[Row], axes: list[str]) -> str:
    """A table with a row for each value of the only axis, and a column for each thing measured."""
    measured = list(dict.fromkeys(name for _, summary in rows for name in summary["accuracy"]))
    header = [axes[0] if axes else "", *[f"{name}, %" for name in measured]]
    body = []
    for labels, summaries in _gathered(rows, axes):
        values = [[s["accuracy"][name]["top1"] for s in summaries if name in s["accuracy"]] for name in measured]
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


def _agreement_line(rows: list[Row]) -> str:
    agreed = _agreements([summary for _, summary in rows])
    measured = ", ".join(dict.fromkeys(headline_accuracy(summary)[0] for _, summary in rows))
    least = min(agreed, default=None)
    if least is None:
        return f"Measured on {measured}."
    share = "all images" if least == 100 else f"{least:.2f} % of the images or more"
    return f"Measured on {measured}. Predictions agree with the simulation's on {share}."


def _agreements(summaries: list[dict]) -> list[float]:
    return [value for summary in summaries for value in summary["agreement"].values()]


def _flat(labels: dict[str, str], summary: dict) -> dict:
    accuracy = {f"{name}_top1": score["top1"] for name, score in summary["accuracy"].items()}
    agreement = {f"{name}_agreement": value for name, value in summary["agreement"].items()}
    size = {f"{name}_mb": value for name, value in summary["size_mb"].items()}
    return labels | accuracy | agreement | size | {"seconds": summary["seconds"]}
