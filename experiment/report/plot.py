"""Pictures of runs, of sweeps and of latency tables."""

import statistics
from pathlib import Path

from utils.files import write_atomically

FLOAT_BARS = (("as_built_ms", "float, eager", "#c9d3df"), ("float_ms", "float, compiled", "#6f8fb3"))
"""(key of a latency row, its name in the legend, its colour)."""
COLOURS = {"float": "#6f8fb3", "int8": "#e07b39"}


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
    """Plot rows of latency.json: for each model its bars of milliseconds in float and, one an engine, in INT8.

    Whiskers go from the 10th to the 90th percentile. The number after each INT8 bar is its speed-up over the float
    model in its fastest form.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    engines = list(dict.fromkeys(row["engine"] for row in rows))
    models = list(dict.fromkeys(subject(row) for row in rows))
    warm = colormaps["Oranges"].resampled(len(engines) + 2)
    bars = [*FLOAT_BARS, *(("int8_ms", name, warm(i + 1)) for i, name in enumerate(engines))]
    figure = Figure(figsize=(9, 1.4 + len(models) * (0.25 + 0.2 * len(bars))), layout="constrained")
    axis = figure.subplots()
    for place, (key, name, colour) in enumerate(bars):
        shown = {subject(r): r for r in rows if key != "int8_ms" or r["engine"] == name}
        _bars(
            axis, [shown.get(model) for model in models], key, (place + 0.5) / len(bars), 0.8 / len(bars), name, colour
        )
    axis.set_yticks(range(len(models)), [_named(timed, models) for timed in models], fontsize=8)
    axis.set_ylim(len(models) - 0.5, -0.5)
    axis.set_xlim(0, 1.12 * axis.get_xlim()[1])  # room for the ratio after the longest bar
    axis.set_xlabel("milliseconds", fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=min(len(bars), 5), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=9)
    save(figure, path)


def subject(row: dict) -> tuple[str, int, int, int]:
    """What a row of latency.json was timed of: model, image size, batch size and threads."""
    return row["model"], row["image_size"], row["batch_size"], row["threads"]


def _named(timed: tuple[str, int, int, int], every: list[tuple[str, int, int, int]]) -> str:
    """Model and image size; batch size and threads where they are not the same of all."""
    name, size, batch, threads = timed
    batches, counts = ({other[i] for other in every} for i in (2, 3))
    more = [f"batch {batch}"] * (len(batches) > 1) + [f"{threads} thread{'s'[: threads > 1]}"] * (len(counts) > 1)
    return "\n".join([f"{name} @{size}", *([", ".join(more)] if more else [])])


def _bars(axis, rows: list[dict | None], key: str, place: float, height: float, name: str, colour) -> None:
    """A bar for each row that is not None, within the tenth to ninth tenth of the space from -0.5 to 0.5 around its
    number. place: where, from 0 to 1."""
    for n, row in enumerate(rows):
        if row is None:
            continue
        at, label = n + 0.8 * (place - 0.5), name if row is next(filter(None, rows)) else None
        spread = [[row[key] - row[f"{key}_p10"]], [row[f"{key}_p90"] - row[key]]]
        axis.barh(at, row[key], height, xerr=spread, capsize=1.5, label=label, color=colour, ecolor="0.4")
        if key == "int8_ms":
            end = max(row[key], row[f"{key}_p90"])
            text = f"{row['speedup']:.2f} x"
            axis.annotate(text, (end, at), (4, 0), textcoords="offset points", va="center", fontsize=7)


def accuracy_against_cost(rows: list[dict], title: str, path: Path) -> None:
    """Plot top-1 accuracy against milliseconds and against MB, for the rows of latency.json that come from runs.

    Each model has a point in float and one on its fastest engine, numbered as in the legend, so that no names overlap.
    A line joins the Pareto front: the points that no other point beats in both.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    points = _points_of(rows)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axis, cost, label in zip(figure.subplots(1, 2, sharey=True), ("ms", "mb"), ("milliseconds", "MB"), strict=True):
        best = front([(point[cost], point["top1"]) for point in points])
        axis.plot(*zip(*best, strict=True), color="0.75", zorder=1)
        for number, point in enumerate(points, 1):
            at, name = (point[cost], point["top1"]), f"{number}  {point['name']}"
            axis.plot(*at, "o", color=point["colour"], markersize=11, label=name if cost == "ms" else None)
            axis.annotate(str(number), at, color="white", fontsize=7, ha="center", va="center")
        axis.set(xlabel=label, xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.25, y=0.15)
        axis.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("top-1 accuracy, %")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, handlelength=0.5)
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
        for kind, colour in COLOURS.items():
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
