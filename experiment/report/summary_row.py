"""A run as a row of a table and as a point of a chart, from its summary.json."""

from experiment.report import charts
from experiment.report.sweep_table import headline_accuracy

IN_FLOAT, IN_INTEGERS = charts.COLOURS[1], charts.COLOURS[0]
HEADER = ["model", "method", "bits, w/a", "measured on", "top-1 %", "float, top-1 %", "agreement %", "MB", "MB, packed"]
SIZE = "MB, weights packed at their own bits"


def values(summary: dict) -> list[str]:
    """The cells of HEADER."""
    measured, top1 = headline_accuracy(summary)
    in_float = summary["accuracy"].get("float")
    agreement = summary["agreement"].get(measured)
    size = summary["size_mb"].get(measured)
    bits = f"{summary.get('weight_bits', '')}/{summary.get('act_bits', '')}"
    return [
        *(str(summary.get(key, "")) for key in ("model", "method")),
        "float" if bits == "32/32" else bits,
        measured,
        f"{top1:.2f}",
        "" if in_float is None else f"{in_float['top1']:.2f}",
        "" if agreement is None else f"{agreement:.2f}",
        "" if size is None else f"{size:.3f}",
        f"{packed(summary):.3f}",
    ]


def packed(summary: dict) -> float:
    """Its size in MB with weights of k bits in k bits; of what is in float, in float."""
    measured, _ = headline_accuracy(summary)
    return summary["size_mb"]["float"] if measured == "float" else summary["size_mb_at_bits"]


def point(name: str, summary: dict) -> charts.Point:
    measured, top1 = headline_accuracy(summary)
    return charts.Point(name, packed(summary), top1, IN_FLOAT if measured == "float" else IN_INTEGERS)
