"""Pictures show what their rows say."""

import itertools
from pathlib import Path

import pytest

from experiment.report import plot


def test_the_pareto_front_is_what_nothing_beats():
    assert plot.front([(1, 80), (2, 79), (2, 85), (3, 85), (4, 90)]) == [(1, 80), (2, 85), (4, 90)]


def test_a_net_is_plotted_on_its_fastest_engine_of_known_accuracy():
    row = {"model": "a", "float_top1": 80.0, "float_ms": 5, "float_mb": 4, "int8_mb": 1}
    rows = [row | {"engine": "x86", "int8_ms": 1, "int8_top1": None}]
    rows += [row | {"engine": "fbgemm", "int8_ms": 2, "int8_top1": 79.0}]
    rows += [row | {"engine": "qnnpack", "int8_ms": 3, "int8_top1": 79.5}]
    rows += [one | {"model": "b", "int8_top1": None} for one in rows]
    names = [(point["name"], point["ms"], point["top1"]) for point in plot._points_of(rows)]
    assert names == [("a, float", 5, 80.0), ("a, fbgemm", 2, 79.0)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved."""
    figures = []
    monkeypatch.setattr(plot, "save", lambda figure, path: figures.append(figure))
    return figures


def timed(model: str, engine: str, ms: float, **more) -> dict:
    row = {"model": model, "engine": engine, "image_size": 32, "speedup": 2.0, "float_mb": 4.0, "int8_mb": 1.0}
    row |= {"batch_size": 1, "threads": 2}
    for key, middle in (("as_built_ms", 8.0), ("float_ms", 6.0), ("int8_ms", ms)):
        row |= {key: middle, f"{key}_p10": 0.9 * middle, f"{key}_p90": 1.1 * middle}
    return row | more


def test_each_model_has_its_float_bars_once_and_a_bar_an_engine(drawn):
    rows = [timed(model, engine, ms) for model in "ab" for engine, ms in (("x86", 2.0), ("onednn", 3.0))]
    plot.latency([*rows, timed("c", "onednn", 1.0)], "title", Path("l.png"))
    [figure] = drawn
    [axis] = figure.axes
    assert sorted(bar.get_width() for bar in axis.patches) == [1.0, 2.0, 2.0, 3.0, 3.0, 6.0, 6.0, 6.0, 8.0, 8.0, 8.0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a @32", "b @32", "c @32"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["float, eager", "float, compiled", "x86", "onednn"]
    places = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in axis.patches]
    ordered = sorted(places)
    assert all(end <= start + 1e-9 for (_, end), (start, _) in itertools.pairwise(ordered)), "no bar lies on another"


def test_points_are_numbered_as_in_the_legend(drawn):
    rows = [timed(model, "x86", 2.0 + i, float_top1=80.0 + i, int8_top1=79.0) for i, model in enumerate("ab")]
    plot.accuracy_against_cost(rows, "title", Path("a.png"))
    [figure] = drawn
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == ["1  a, float", "2  a, x86", "3  b, float", "4  b, x86"]
    assert [axis.get_xlabel() for axis in figure.axes] == ["milliseconds", "MB"]
    for axis in figure.axes:
        assert [text.get_text() for text in axis.texts] == ["1", "2", "3", "4"]


def test_batch_size_and_threads_are_named_where_they_differ(drawn):
    rows = [
        timed("a", "x86", 1.0),
        timed("a", "x86", 5.0, batch_size=8),
        timed("a", "x86", 9.0, batch_size=8, threads=1),
    ]
    plot.latency(rows, "title", Path("latency.png"))
    [axis] = drawn[0].axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["a @32\nbatch 1, 2 threads", "a @32\nbatch 8, 2 threads", "a @32\nbatch 8, 1 thread"]
