"""Pictures of runs, of sweeps and of latency tables."""

import statistics
from pathlib import Path

from utils.files import write_atomically

BARS = (
    ("as_built_ms", "float, eager", "#c9d3df"),
    ("float_ms", "float, compiled", "#6f8fb3"),
    ("int8_ms", "INT8", "#e07b39"),
)
"""(key of a latency row, its name in the legend, its colour)."""


def save(figure, path: Path) -> None:
    """Write a figure of matplotlib as a PNG."""
    write_atomically(path, lambda part: figure.savefig(part, dpi=110, format="png"))


def curves(rows: list[dict], title: str, path: Path) -> None:
    """Plot loss and top-1 accuracy by epoch, for training and (if there are any) validation images; shade float epochs.

    rows: of metrics.csv. path: the PNG to write.
    """
    if not rows:
        return
    from matplotlib.figure import Figure  # here: a second to import, and only the end of a run needs it

    epochs, float_epochs = [row["epoch"] for row in rows], sum(row["stage"] == "float" for row in rows)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, what, label in zip(axes, ("loss", "top1"), ("cross-entropy", "top-1 accuracy, %"), strict=True):
        axis.plot(epochs, [row[f"train_{what}"] for row in rows], marker="o", markersize=3, label="training")
        if rows[0].get(f"val_{what}") is not None:
            axis.plot(epochs, [row[f"val_{what}"] for row in rows], marker="s", markersize=3, label="validation")
        if 0 < float_epochs < len(rows):
            axis.axvspan(0.5, float_epochs + 0.5, color="0.9", label="float epochs")
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title)
    save(figure, path)


def latency(rows: list[dict], title: str, path: Path) -> None:
    """Plot rows of latency.json: a panel for each engine, bars of milliseconds by model, whiskers from the 10th to the
    90th percentile.

    The number after each INT8 bar is its speed-up over the float model in its fastest form.
    """
    from matplotlib.figure import Figure

    engines = list(dict.fromkeys(row["engine"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    columns = min(3, len(engines))
    lines = -(-len(engines) // columns)
    figure = Figure(figsize=(2.6 + 3.6 * columns, lines * (1.1 + 0.62 * len(models))), layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for axis, engine in zip(panels, engines, strict=False):
        _bars(axis, [row for row in rows if row["engine"] == engine])
        axis.set_title(engine, fontsize=10)
    for axis in panels[len(engines) :]:
        axis.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(BARS), frameon=False)
    figure.suptitle(title, fontsize=9)
    save(figure, path)


def _bars(axis, rows: list[dict]) -> None:
    """Three bars for each row (BARS): medians, with whiskers from the 10th to the 90th percentile."""
    for i, (key, label, colour) in enumerate(BARS):
        middle = [row[key] for row in rows]
        spread = [[row[key] - row[f"{key}_p10"] for row in rows], [row[f"{key}_p90"] - row[key] for row in rows]]
        at = [n + (i - 1) * 0.27 for n in range(len(rows))]
        axis.barh(at, middle, 0.25, xerr=spread, capsize=2, label=label, color=colour, ecolor="0.4")
    for n, row in enumerate(rows):
        end = max(row["int8_ms"], row["int8_ms_p90"])
        text = f"{row['speedup']:.2f} x"
        axis.annotate(text, (end, n + 0.27), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [f"{row['model']} @{row['image_size']}" for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 1.12 * axis.get_xlim()[1])  # room for the ratio after the longest bar
    axis.set_xlabel("milliseconds", fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)


def accuracy_against_cost(rows: list[dict], title: str, path: Path) -> None:
    """Plot top-1 accuracy against milliseconds and against MB, for the rows of latency.json that come from runs.

    Each model has a point in float and one on its fastest engine. A line joins the Pareto front: the points that no
    other point beats in both.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    points = _points_of(rows)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axis, cost, label in zip(figure.subplots(1, 2, sharey=True), ("ms", "mb"), ("milliseconds", "MB"), strict=True):
        best = front([(point[cost], point["top1"]) for point in points])
        axis.plot(*zip(*best, strict=True), color="0.75", zorder=1)
        for point in points:
            at = point[cost], point["top1"]
            axis.plot(*at, "o", color=point["colour"], markersize=6)
            axis.annotate(point["name"], at, (6, -3), textcoords="offset points", fontsize=8)
        axis.set(xlabel=label, xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.25, y=0.15)
        axis.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("top-1 accuracy, %")
    figure.suptitle(title, fontsize=9)
    save(figure, path)


def _points_of(rows: list[dict]) -> list[dict]:
    """For each model a point in float and one on its fastest engine, where the accuracy is known."""
    points, engines = [], len({row["engine"] for row in rows})
    for same in (rows[i : i + engines] for i in range(0, len(rows), engines)):
        known = [row for row in same if row["int8_top1"] is not None]
        if not known:
            continue
        model, best = same[0]["model"], min(known, key=lambda row: row["int8_ms"])
        for kind, (_, _, colour) in (("float", BARS[1]), ("int8", BARS[2])):
            point = {"name": f"{model}, {'float' if kind == 'float' else best['engine']}", "colour": colour}
            point |= {key: best[f"{kind}_{key}"] for key in ("top1", "ms", "mb")}
            points += [point] if point["top1"] is not None else []
    return points


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, value) pairs, sorted by cost, for which no other costs at most as much and has as high a value."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def sweep(
    groups: list[tuple[dict[str, str], list[float]]],
    axes: list[str],
    baseline: float | None,
    title: str,
    path: Path,
) -> None:
    """Plot the accuracy of a sweep's cells: a heat map if there are two axes or more, else points.

    groups: (labels by axis, top-1 of each seed). baseline: top-1 of the float model, or None.
    """
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(", ".join(list(labels.values())[:-1]) for labels, _ in groups))
    columns = list(dict.fromkeys(list(labels.values())[-1] if labels else "" for labels, _ in groups))
    one_axis = len(axes) < 2
    size = (7, 1.6 + 0.45 * len(groups)) if one_axis else (2.6 + 0.95 * len(columns), 1.9 + 0.55 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    if one_axis:
        _points(axis, columns, [values for _, values in groups], baseline)
    else:
        means = {(", ".join(list(k.values())[:-1]), list(k.values())[-1]): statistics.mean(v) for k, v in groups}
        _heat_map(axis, rows, columns, means)
        axis.set(xlabel=axes[-1], ylabel=", ".join(axes[:-1]))
    figure.suptitle(title + (f"\nfloat: {baseline:.2f} %" if baseline is not None else ""), fontsize=10)
    save(figure, path)


def _points(axis, names: list[str], values: list[list[float]], baseline: float | None) -> None:
    means = [statistics.mean(v) for v in values]
    spread = [statistics.stdev(v) if len(v) > 1 else 0 for v in values]
    for i, each in enumerate(values):
        axis.plot(each, [i] * len(each), "o", color="#f0c3a2", markersize=5)
    axis.errorbar(means, range(len(names)), xerr=spread, fmt="o", color="#e07b39", ecolor="0.4", capsize=3)
    for i, mean in enumerate(means):
        axis.annotate(f"{mean:.2f}", (mean, i), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    if baseline is not None:
        axis.axvline(baseline, color="0.3", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.7)
    axis.margins(x=0.12)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("top-1 accuracy, %")


def _heat_map(axis, rows: list[str], columns: list[str], means: dict[tuple[str, str], float]) -> None:
    table = [[means.get((row, column), float("nan")) for column in columns] for row in rows]
    axis.imshow(table, cmap="YlGn", vmin=0, vmax=100, aspect="auto")
    for (row, column), mean in means.items():
        colour = "white" if mean > 75 else "black"
        axis.text(columns.index(column), rows.index(row), f"{mean:.2f}", ha="center", va="center", color=colour)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
