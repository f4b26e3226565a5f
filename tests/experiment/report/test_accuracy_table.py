"""The accuracy table: a row for float, the simulation and each engine, and nothing that says nothing."""

import copy

import pytest

from experiment.report.accuracy_table import accuracy_table

RESULT = {
    "accuracy": {
        "float": {"top1": 91.234, "top5": 99.0, "loss": 0.25},
        "simulated": {"top1": 90.0, "top5": 98.0, "loss": 0.5},
        "x86": {"top1": 89.0, "top5": 97.0, "loss": 0.75},
    },
    "agreement": {"x86": 99.5},
    "bit_equal": {"x86": 98.25},
    "size_mb": {"float": 1.25, "x86": 0.5},
    "size_mb_at_bits": 0.125,
}


@pytest.fixture
def result():
    return copy.deepcopy(RESULT)


def add_engine(result: dict, name: str, bit_equal: float = 100.0, size: float = 0.5) -> None:
    result["accuracy"][name] = dict(result["accuracy"]["simulated"])
    result["agreement"][name] = 100.0
    result["bit_equal"][name], result["size_mb"][name] = bit_equal, size


def cells(result: dict) -> list[list[str]]:
    return [line.split() for line in accuracy_table(result).splitlines()]


def test_the_table_has_a_row_for_each_result(result):
    lines = accuracy_table(result).splitlines()
    assert lines[-1] == "packed at its own bit-widths: 0.125 MB"
    assert lines[-2] == ""
    assert ["float", "91.23", "99.00", "0.2500", "1.250"] in cells(result)
    assert ["simulated", "90.00", "-1.23", "98.00", "0.5000"] in cells(result)
    assert ["x86", "89.00", "-2.23", "97.00", "0.7500", "99.50", "98.25", "0.500"] in cells(result)
    failed = accuracy_table(result | {"failed": {"openvino": "engines: openvino cannot run it"}}).splitlines()
    assert failed == [*lines[:-1], "engines: openvino cannot run it", "", lines[-1]]
    del result["accuracy"]["simulated"], result["accuracy"]["x86"]
    assert "packed at its own bit-widths" not in accuracy_table(result)


def test_engines_that_are_equal_to_the_bit_share_a_row(result):
    for name in ("fbgemm", "onednn"):
        add_engine(result, name)
    add_engine(result, "larger", size=0.75)
    add_engine(result, "other", bit_equal=99.99)
    found = accuracy_table(result)
    assert ["2", "engines", "90.00", "-1.23", "98.00", "0.5000", "100.00", "100.00", "0.500"] in cells(result)
    assert [row[0] for row in cells(result)[2:7]] == ["float", "simulated", "x86", "2", "larger"]
    assert "\n2 engines, all bit-equal: fbgemm, onednn\n" in found


def test_columns_that_say_nothing_are_left_out(result):
    assert cells(result)[0] == ["top-1", "%", "gap", "top-5", "%", "loss", "agreement", "%", "bit-equal", "%", "MB"]
    for score in result["accuracy"].values():
        score["top5"] = 100.0
    assert "top-5 %" not in accuracy_table(result)
    del result["accuracy"]["float"], result["size_mb"]["float"]
    assert "gap" not in accuracy_table(result)
    del result["accuracy"]["x86"], result["agreement"]["x86"], result["bit_equal"]["x86"], result["size_mb"]["x86"]
    assert cells(result)[0] == ["top-1", "%", "loss"]
