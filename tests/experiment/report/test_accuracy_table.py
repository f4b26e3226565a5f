"""The accuracy table: a row for float, the simulation and each engine."""

from experiment.report.accuracy_table import accuracy_table


def test_the_table_has_a_row_for_each_result():
    result = {
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
    lines = accuracy_table(result).splitlines()
    assert lines[-1] == "packed at its own bit-widths: 0.125 MB"
    assert lines[-2] == ""
    cells = [line.split() for line in lines]
    assert ["float", "91.23", "99.00", "0.2500", "1.250"] in cells
    assert ["simulated", "90.00", "98.00", "0.5000"] in cells
    assert ["x86", "89.00", "97.00", "0.7500", "99.50", "98.25", "0.500"] in cells
    failed = accuracy_table(result | {"failed": {"openvino": "engines: openvino cannot run it"}}).splitlines()
    assert failed == [*lines[:-1], "engines: openvino cannot run it", "", lines[-1]]
    del result["accuracy"]["simulated"], result["accuracy"]["x86"]
    assert "packed at its own bit-widths" not in accuracy_table(result)
