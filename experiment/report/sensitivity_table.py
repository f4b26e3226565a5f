"""How much accuracy each layer's quantization costs: quant.sensitivity as a table, sensitivity.csv and a picture."""

from pathlib import Path

from experiment.report.plot import save
from utils.files import write_csv
from utils.sections import FLOAT_BITS
from utils.table import text_table

HEADER = ["layer", "weight bits", "input bits", "weights dB", "input dB", "only this, %", "all but this, %", "KL"]
LOST, WON, HARM = "#e07b39", "#6f8fb3", "#8c6bb1"


def text(found: dict) -> str:
    """The table, a row for each layer, the most harmful first."""
    rows = [
        [
            row["layer"],
            _bits(row["weight_bits"]),
            _bits(row["input_bits"]),
            _decibels(row["weight_sqnr_db"]),
            _decibels(row["input_sqnr_db"]),
            f"{row['only_top1']:.2f}",
            f"{row['all_but_top1']:.2f}",
            f"{row['kl_divergence']:.5f}",
        ]
        for row in found["rows"]
    ]
    return f"{text_table(HEADER, rows)}\n\n{_summary_line(found)}"


def write(found: dict, title: str, folder: Path) -> None:
    """sensitivity.csv and sensitivity.png."""
    write_csv(folder / "sensitivity.csv", found["rows"])
    picture(found, title, folder / "sensitivity.png")


def picture(found: dict, title: str, path: Path) -> None:
    """Plot bars for each layer: its harm; the points of top-1 lost if it alone is quantized, and regained if it
    alone is float."""
    from matplotlib.figure import Figure  # here: a second to import

    rows = found["rows"]
    figure = Figure(figsize=(10, 1.9 + 0.3 * len(rows)), layout="constrained")
    harm, points = figure.subplots(1, 2, sharey=True)
    at = range(len(rows))
    harm.barh(at, [row["kl_divergence"] for row in rows], 0.6, color=HARM)
    harm.set_xlabel("KL divergence from float, this layer alone quantized", fontsize=9)
    lost = [found["float_top1"] - row["only_top1"] for row in rows]
    won = [row["all_but_top1"] - found["all_top1"] for row in rows]
    points.barh([n - 0.2 for n in at], lost, 0.36, color=LOST, label="lost, this layer alone quantized")
    points.barh([n + 0.2 for n in at], won, 0.36, color=WON, label="won back, this layer alone in float")
    points.axvline(0, color="0.3", linewidth=0.8)
    points.set_xlabel("points of top-1", fontsize=9)
    names = [f"{row['layer']}  {_bits(row['weight_bits'])}/{_bits(row['input_bits'])}" for row in rows]
    harm.set_yticks(at, names, fontsize=8)
    harm.set_ylim(len(rows) - 0.4, -0.6)
    for axis in (harm, points):
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    points.legend(fontsize=8, loc="lower right")
    figure.suptitle(f"{title}\n{_summary_line(found)}", fontsize=10)
    save(figure, path)


def _summary_line(found: dict) -> str:
    return f"top-1: float {found['float_top1']:.2f} %, all quantized {found['all_top1']:.2f} %"


def _bits(bits: int) -> str:
    return "float" if bits == FLOAT_BITS else str(bits)


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
