"""The page that compares runs."""

from experiment.report import compare_report
from experiment.report.compare_report import Run
from tests.experiment.report.test_charts import row, texts
from tests.experiment.report.test_summary_row import summary

HOSTILE = "<script>alert(1)</script>"


def run(name: str, bits: int) -> Run:
    setting = {"quant.act_bits": str(bits), "optim.lr": "0.1"} | ({"quant.step": "1"} if bits == 4 else {})
    return Run(name, summary(bits, x86=80.0 + bits), [row(1), row(2)], setting)


def test_what_differs_is_listed_alone():
    found = compare_report.differing([run("a", 4), run("b", 8)])
    assert found.header == ["key", "a", "b"]
    assert found.rows == [["quant.act_bits", "4", "8"], ["quant.step", "1", ""]]
    assert compare_report.differing([run("a", 4), run("b", 4)]).rows == []


def test_a_page_has_all_runs(tmp_path):
    compare_report.write([run("a", 4), run(HOSTILE, 8)], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    charts = [f"<svg{part.partition('</svg>')[0]}</svg>" for part in page.split("<svg")[1:]]
    assert len(charts) == 3
    assert {"a", HOSTILE} <= texts(charts[0])
    for said in ("84.00", "88.00", "quant.act_bits"):
        assert said in page
    assert page.count("<script") == 1
