"""A summary as a row and as a point."""

import pytest

from experiment.report.summary_row import HEADER, IN_FLOAT, IN_INTEGERS, packed, point, values


def summary(bits: int = 4, **top1: float) -> dict:
    engines = [name for name in top1 if name not in ("float", "simulated")]
    return {
        **{"model": "resnet20", "method": "lsq", "weight_bits": bits, "act_bits": bits},
        "accuracy": {name: {"top1": value} for name, value in top1.items()},
        "agreement": dict.fromkeys(engines, 99.5),
        "size_mb": {"float": 1.0, **dict.fromkeys(engines, 0.25)},
        "size_mb_at_bits": 0.125,
    }


def test_a_row_is_of_the_first_engine():
    row = dict(zip(HEADER, values(summary(float=91.0, simulated=90.0, x86=90.25)), strict=True))
    assert (row["bits, w/a"], row["measured on"], row["top-1 %"], row["float, top-1 %"]) == (
        "4/4",
        "x86",
        "90.25",
        "91.00",
    )
    assert (row["agreement %"], row["MB"], row["MB, packed"]) == ("99.50", "0.250", "0.125")


def test_a_float_model_has_its_own_size():
    row = dict(zip(HEADER, values(summary(32, float=91.0)), strict=True))
    assert (row["bits, w/a"], row["agreement %"], row["MB, packed"]) == ("float", "", "1.000")


@pytest.mark.parametrize(
    ("top1", "megabytes", "colour"),
    [({"float": 91.0}, 1.0, IN_FLOAT), ({"float": 91.0, "simulated": 90.0}, 0.125, IN_INTEGERS)],
)
def test_a_point_is_its_packed_size_and_its_accuracy(top1, megabytes, colour):
    assert packed(summary(**top1)) == megabytes
    assert point("a", summary(**top1)) == ("a", megabytes, [*top1.values()][-1], colour)
