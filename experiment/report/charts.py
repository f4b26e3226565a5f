"""Charts as SVG within a page: in the colour of its text, and as wide as there is room."""

import functools
import hashlib
import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from experiment.report.plot import front

INK = "#010203"
"""What axes and text are drawn in, to be replaced by the colour of the page's text."""
COLOURS = ("#e07b39", "#5b8dc9", "#8c6bb1", "#3f9e75", "#c9618c", "#8a8a3c", "#4aa3a8", "#a1745a")
"""Of lines and points: they can be seen on white and on black."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
LONGEST_NAME = 36
MOST_NAMED = 4
"""Of more points than this, those of the Pareto front alone have names."""


class Point(NamedTuple):
    name: str
    megabytes: float
    top1: float
    colour: str = COLOURS[0]


def curves(runs: dict[str, list[dict]]) -> list[Markup]:
    """Charts of loss and of top-1 by epoch. runs: rows of metrics.csv by the run's name.

    Of one run: its training and validation images, and its float epochs in grey. Of several: a line each, of the
    validation images where there are any.
    """
    trained = {name: rows for name, rows in runs.items() if rows}
    if not trained:
        return []
    whats = {"loss": "cross-entropy", "top1": "top-1 accuracy, %"}
    return [chart(functools.partial(_curves, trained, what), "epoch", label) for what, label in whats.items()]


def _curves(runs: dict[str, list[dict]], what: str, axis: Any) -> None:
    if len(runs) == 1:
        (rows,) = runs.values()
        _line(axis, rows, f"train_{what}", "training", 0)
        if f"val_{what}" in rows[0]:
            _line(axis, rows, f"val_{what}", "validation", 1)
        in_float = sum(row["stage"] == "float" for row in rows)
        if 0 < in_float < len(rows):
            axis.axvspan(0.5, in_float + 0.5, color=INK, alpha=0.07, linewidth=0, label="float epochs")
    for i, (name, rows) in enumerate(runs.items() if len(runs) > 1 else ()):
        part = "val" if f"val_{what}" in rows[0] else "train"
        _line(axis, rows, f"{part}_{what}", f"{short(name)}{'' if part == 'val' else ' (training)'}", i)
    axis.set_xlim(0.5, max(row["epoch"] for rows in runs.values() for row in rows) + 0.5)
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axis.figure.legend(loc="outside lower center", ncols=3 if len(runs) == 1 else 1)


def _line(axis: Any, rows: list[dict], key: str, label: str, number: int) -> None:
    style = ("-", "--", ":")[number // len(COLOURS) % 3]
    epochs, colour = [row["epoch"] for row in rows], COLOURS[number % len(COLOURS)]
    axis.plot(epochs, [row.get(key) for row in rows], style, marker="o", markersize=3, color=colour, label=label)


def accuracy_against_size(points: list[Point], size_label: str = "MB") -> Markup:
    """A chart of top-1 against size. A line joins the Pareto front: what nothing beats in both."""
    best = front([(point.megabytes, point.top1) for point in points])
    middle = sum(find(point.megabytes for point in points) for find in (min, max)) / 2 if points else 0.0

    def draw(axis: Any) -> None:
        axis.plot(*zip(*best, strict=True), color=INK, alpha=0.3, zorder=1)
        for at, same in _by_place(points).items():
            axis.plot(*at, "o", color=same[0].colour, markersize=6)
            if len(points) <= MOST_NAMED or at in best:
                inward, side = (-6, "right") if at[0] > middle else (6, "left")
                names = "\n".join(short(point.name) for point in same)
                axis.annotate(names, at, (inward, -3), textcoords="offset points", ha=side, fontsize=8)
        axis.margins(x=0.15, y=0.15)

    return chart(draw, size_label, "top-1 accuracy, %") if points else Markup("")


def _by_place(points: list[Point]) -> dict[tuple[float, float], list[Point]]:
    """Points that would lie on each other, together."""
    found: dict[tuple[float, float], list[Point]] = {}
    for point in points:
        found.setdefault((point.megabytes, point.top1), []).append(point)
    return found


def short(name: str) -> str:
    """A name that fits into a chart."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[1 - LONGEST_NAME // 2 :]}"


def chart(draw: Callable[[Any], None], xlabel: str, ylabel: str) -> Markup:
    """The SVG of what draw(axis) draws."""
    import matplotlib  # here: a second to import
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.4), layout="constrained")
        figure.patch.set_alpha(0)
        axis = figure.subplots()
        axis.patch.set_alpha(0)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.grid()
        axis.set_axisbelow(True)
        draw(axis)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return inline(file.getvalue(), f"{ylabel} by {xlabel}")


def inline(svg: str, said: str) -> Markup:
    """A file of matplotlib's as an element: without what belongs to files, with ids that no other chart has."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    own = hashlib.blake2b(svg.encode(), digest_size=4).hexdigest()
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{own}-", svg).replace(INK, "currentColor")
    svg = re.sub(r'^<svg ([^>]*?)(?:width|height)="[\d.]+pt" ?', r"<svg \1", svg)
    svg = re.sub(r'^<svg ([^>]*?)(?:width|height)="[\d.]+pt" ?', r"<svg \1", svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(said)}" ', 1))
