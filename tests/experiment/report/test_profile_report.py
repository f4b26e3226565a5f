"""The worst operators are those that lose the most time; reasons add up; the picture has a bar for each operator."""

from pathlib import Path

from experiment.report import profile_report
from experiment.report.profile_report import Profiled
from quant import Profile
from quant.analysis.profile import Timed


def timed(name: str, lost: float, reason: str, macs: int = 1_000_000, float_ms: float | None = 0.5) -> Timed:
    return Timed(name, "x86", (1, 8, 4, 4), macs, float_ms, lost + 0.01, 20.0, 10.0, lost, reason)


OPERATORS = [timed(f"conv{i}", 0.01 * i, ("depthwise", "few channels")[i % 2]) for i in range(12)]
ONE = Profiled(
    "net", "x86", 224, 1, 2, Profile([*OPERATORS, timed("image", 0.5, "conversion", 0, None)], 2.0, 6.0, 200.0)
)


def test_the_worst_are_listed_the_worst_first():
    lines = profile_report.text(ONE).splitlines()
    head = "net @224, x86, batch 1, 2 threads: 13 operators, INT8 2.00 ms, float 6.00 ms, peak 200 GOP/s"
    assert lines[0] == head
    names = [line.split()[0] for line in lines[4:14]]
    assert names == ["image", *(f"conv{i}" for i in range(11, 2, -1))]
    assert lines[4].split() == ["image", "x86", "0.510", "0.500", "conversion"], "no MACs and no float form"
    assert lines[5].split() == ["conv11", "x86", "1.00", "0.500", "0.120", "0.110", "20", "10", "few", "channels"]


def test_what_is_lost_is_summed_by_reason():
    assert profile_report.lost(ONE.found) == "conversion 0.50 ms; few channels 0.36 ms; depthwise 0.30 ms"


def test_the_table_has_all_operators():
    rows = profile_report.rows(ONE)
    assert len(rows) == 13
    assert rows[0] | {"model": "net", "threads": 2, "name": "conv0", "output": "1x8x4x4"} == rows[0]


def test_the_picture_has_a_bar_for_each_operator_of_each_profile(monkeypatch):
    figures = []
    monkeypatch.setattr(profile_report, "save", lambda figure, path: figures.append(figure))
    profile_report.picture([ONE, ONE], Path("p.png"))
    [figure] = figures
    for axis in figure.axes:
        assert [bar.get_height() for bar in axis.patches[13:]] == [op.int8_ms for op in ONE.found.operators]
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == ["float", "conversion", "few channels", "depthwise"]
