"""The page of a sweep."""

from experiment.report import sweep_report
from tests.experiment.report.test_summary_row import summary

HOSTILE = '"><script>alert(1)</script>'


def test_a_page_has_a_row_for_each_cell_and_leads_to_its_own(tmp_path):
    summaries = {i: summary(i, x86=80.0 + i) | {"seconds": 90.0} for i in (2, 4)}
    cells = [(f"bits={i} {HOSTILE}", {"bits": f"{i} {HOSTILE}"}, found) for i, found in summaries.items()]
    (tmp_path / cells[0][0]).mkdir(parents=True)
    (tmp_path / cells[0][0] / "report.html").write_text("")
    sweep_report.write(cells, {"top1": 91.5}, HOSTILE, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for said in ("82.00", "84.00", "91.50", "1.5", "<svg"):
        assert said in page, said
    assert 'href="bits%3D2%20%22%3E%3Cscript%3Ealert%281%29%3C/script%3E/report.html"' in page
    assert "bits%3D4" not in page, "it has no page"
    assert page.count("<script") == 1


def test_a_sweep_of_nothing_but_seeds_or_without_a_baseline(tmp_path):
    sweep_report.write([("all", {}, summary(x86=80.0) | {"seconds": 1.0})], None, "mine", tmp_path / "report.html")
    assert "every cell starts from" not in (tmp_path / "report.html").read_text()
