"""Pictures of runs, of sweeps and of latency tables."""

import statistics
from pathlib import Path

from utils.files import write_whole

BARS = (
    ("as_built_ms", "float, as built", "#c9d3df"),
    ("float_ms", "float, best form", "#6f8fb3"),
    ("int8_ms", "INT8", "#e07b39"),
)
"""Keys of a latency row, their names and colours."""


def curves(rows: list[dict], title: str, path: Path) -> None:
    """Loss and top-1 accuracy by epoch, training and (where held out) validation; float epochs shaded."""
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
    write_whole(path, lambda part: figure.savefig(part, dpi=110, format="png"))


def latency(rows: list[dict], title: str, path: Path) -> None:
    """Rows of latency.json: a panel an engine, bars of milliseconds by model, 10th to 90th percentile as whiskers.

    Over each INT8 bar stands its speed-up over the float net in its best form.
    """
    from matplotlib.figure import Figure

    engines = list(dict.fromkeys(row["engine"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    wide = 1.6 + max(4.0, 1.3 * len(models)) * len(engines)
    figure = Figure(figsize=(wide, 4.6), layout="constrained")
    panels = figure.subplots(1, len(engines), sharey=True, squeeze=False)[0]
    for axis, engine in zip(panels, engines, strict=True):
        shown = [row for row in rows if row["engine"] == engine]
        for i, (key, label, colour) in enumerate(BARS):
            at = [n + (i - 1) * 0.28 for n in range(len(shown))]
            middle = [row[key] for row in shown]
            whiskers = [
                [m - row[f"{key}_p10"] for m, row in zip(middle, shown, strict=True)],
                [row[f"{key}_p90"] - m for m, row in zip(middle, shown, strict=True)],
            ]
            axis.bar(at, middle, 0.26, yerr=whiskers, capsize=2, label=label, color=colour, ecolor="0.4")
        for n, row in enumerate(shown):
            height = max(row["int8_ms"], row["int8_ms_p90"])
            axis.annotate(f"{row['speedup']:.1f}x", (n + 0.28, height), (0, 3), textcoords="offset points", ha="center")
        names = [f"{row['model']}\n{row['image_size']} px" for row in shown]
        axis.set_xticks(range(len(shown)), names, rotation=0 if len(shown) < 4 else 35, fontsize=9)
        axis.set_title(engine)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    panels[0].set_ylabel("milliseconds")
    panels[-1].legend(frameon=False)
    figure.suptitle(title, fontsize=9)
    write_whole(path, lambda part: figure.savefig(part, dpi=110, format="png"))


def sweep(
    groups: list[tuple[dict[str, str], list[float]]],
    axes: list[str],
    baseline: float | None,
    title: str,
    path: Path,
) -> None:
    """Accuracy of a sweep's cells: a heat map over two axes, else points. groups: (labels, top-1 of each seed)."""
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(", ".join(list(labels.values())[:-1]) for labels, _ in groups))
    columns = list(dict.fromkeys(list(labels.values())[-1] if labels else "" for labels, _ in groups))
    flat = len(axes) < 2
    size = (7, 1.6 + 0.45 * len(groups)) if flat else (2.6 + 0.95 * len(columns), 1.9 + 0.55 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    if flat:
        _points(axis, columns, [values for _, values in groups], baseline)
    else:
        means = {(", ".join(list(k.values())[:-1]), list(k.values())[-1]): statistics.mean(v) for k, v in groups}
        _heat_map(axis, rows, columns, means)
        axis.set(xlabel=axes[-1], ylabel=", ".join(axes[:-1]))
    figure.suptitle(title + (f"\nfloat: {baseline:.2f} %" if baseline is not None else ""), fontsize=10)
    write_whole(path, lambda part: figure.savefig(part, dpi=110, format="png"))


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
