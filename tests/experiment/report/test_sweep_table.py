"""The tables of a sweep: what a cell is judged by, and how seeds are gathered."""

import csv

import pytest

from experiment.report.sweep_table import headline_accuracy, mean_text, write_tables


def summary(seconds: float = 60.0, agreement: float = 100.0, **top1: float) -> dict:
    engines = [name for name in top1 if name not in ("float", "simulated")]
    return {
        "accuracy": {name: {"top1": value} for name, value in top1.items()},
        "agreement": dict.fromkeys(engines, agreement),
        "size_mb": dict.fromkeys(engines, 0.3),
        "seconds": seconds,
    }


@pytest.mark.parametrize(
    ("top1", "expected"),
    [
        ({"float": 1.0, "simulated": 2.0, "x86": 3.0, "fbgemm": 4.0}, ("x86", 3.0)),
        ({"float": 1.0, "simulated": 2.0}, ("simulated", 2.0)),
        ({"float": 1.0}, ("float", 1.0)),
    ],
)
def test_a_cell_is_judged_by_its_first_engine_else_simulated_else_float(top1, expected):
    assert headline_accuracy(summary(**top1)) == expected


def test_seeds_are_a_mean_and_a_deviation():
    assert mean_text([90.0]) == "90.00"
    assert mean_text([90.0, 92.0]) == "91.00 ± 1.41"


def test_one_axis_makes_a_row_a_value(tmp_path):
    rows = [({"recipe": r, "run.seed": s}, summary(simulated=v, x86=v)) for r, s, v in (("a", "1", 90), ("a", "2", 92))]
    rows.append(({"recipe": "b", "run.seed": "1"}, summary(float=80.0)))
    write_tables(tmp_path, rows, {"top1": 95.0}, "mine")
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == "# mine"
    assert "every cell starts from: 95.00" in lines[2]
    assert [cell.strip() for cell in lines[4].split("|")[1:-1]] == [
        *("recipe", "simulated, %", "x86, %", "float, %", "agreement, %", "minutes")
    ]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[6:]]
    assert cells == [["a", "91.00 ± 1.41", "91.00 ± 1.41", "", "100.00", "1.0"], ["b", "", "", "80.00", "", "1.0"]]
    found = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["simulated_top1"] for row in found] == ["90", "92", ""]


def test_two_axes_make_a_grid(tmp_path):
    rows = [({"a": a, "b": b}, summary(agreement=99.5, x86=v)) for a, b, v in (("1", "x", 70), ("1", "y", 80))]
    rows.append(({"a": "2", "b": "y"}, summary(x86=90)))
    write_tables(tmp_path, rows, None, "mine")
    text = (tmp_path / "table.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert [lines[0], *lines[2:]] == [["a", "b x", "b y"], ["1", "70.00", "80.00"], ["2", "", "90.00"]]
    assert "Measured on x86. Predictions agree with the simulation's on 99.50 % of the images or more." in text
