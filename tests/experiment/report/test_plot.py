"""Pictures show what their rows say."""

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
