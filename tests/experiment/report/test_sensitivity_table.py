"""The sensitivity of layers as a table, a CSV file and a picture."""

import csv

from PIL import Image

from experiment.report import sensitivity_table


def row(layer: str, harm: float, **more) -> dict:
    found = {"layer": layer, "weight_bits": 4, "input_bits": 8, "weight_sqnr_db": 20.04, "input_sqnr_db": 30.0}
    return found | {"only_top1": 90.5, "all_but_top1": 89.25, "kl_divergence": harm} | more


FOUND = {
    "float_top1": 91.0,
    "all_top1": 89.0,
    "rows": [row("conv1", 0.5), row("fc", 0.125, input_bits=32, input_sqnr_db=None)],
}


def test_a_row_for_each_layer_and_a_summary():
    lines = sensitivity_table.text(FOUND).splitlines()
    conv1, fc = (next(line for line in lines if name in line).split() for name in ("conv1", "fc"))
    assert conv1 == ["conv1", "4", "8", "20.0", "30.0", "90.50", "89.25", "0.50000"]
    assert fc == ["fc", "4", "float", "20.0", "90.50", "89.25", "0.12500"], "no decibels of what is float"
    assert lines[-1] == "top-1: float 91.00 %, all quantized 89.00 %"


def test_the_files(tmp_path):
    sensitivity_table.write(FOUND, "a model", tmp_path)
    with (tmp_path / "sensitivity.csv").open() as file:
        assert [(found["layer"], float(found["kl_divergence"])) for found in csv.DictReader(file)] == [
            ("conv1", 0.5),
            ("fc", 0.125),
        ]
    with Image.open(tmp_path / "sensitivity.png") as picture:
        assert picture.size[0] > 500
