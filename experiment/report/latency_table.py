"""The latency table: printed, written to files, and drawn."""

from pathlib import Path

from experiment.report import plot
from utils import files
from utils.console import say
from utils.table import markdown_table, text_table

HEADER = ["model", "params", "FLOPs", "@32", "MB", "MB INT8", "in INT8", "float, eager", "float, compiled"]
DETAIL = ["model", "engine", "float, eager", "float, compiled", "INT8", "x eager", "x compiled"]
CAPTION = (
    "Milliseconds, median of {repeats} interleaved runs, threads: {threads}; under an engine's name those of INT8, and "
    "how many times faster that is than float, compiled. Float, eager: the model unchanged, NCHW. Float, compiled: its "
    "fastest form here, with batch norm folded, channels_last, as one TorchScript program; INT8 runs as one, too. "
    "FLOPs: 2 x the multiply-accumulates of convolutions and linear layers; @32: of convolutions alone, at 32 x 32. "
    "In INT8: the share of the multiply-accumulates that runs in integers."
)


def report(rows: list[dict], repeats: int, machine: dict, folder: Path) -> None:
    """Print the rows of experiment/latency.py; write latency.json, .csv, .md, .png and environment.json to a folder.

    repeats: timed calls of each model. machine: utils.environment.environment().
    """
    flags, first = " ".join(machine["cpu_flags"]), rows[0]
    head = f"{machine['cpu']} ({flags}), torch {machine['torch']}, batch {first['batch_size']}"
    caption = CAPTION.format(repeats=repeats, threads=first["threads"])
    header, cells = _by_model(rows)
    say(f"{head}\n\n{text_table(header, cells)}\n\n{caption}")  # first: the disk may be full
    files.write_json(folder / "latency.json", rows)
    files.write_json(folder / "environment.json", machine)
    files.write_csv(folder / "latency.csv", rows)
    detail = f"Median (10th to 90th percentile):\n\n{markdown_table(DETAIL, [_detail(row) for row in rows])}"
    files.write_text(folder / "latency.md", f"{head}\n\n{markdown_table(header, cells)}\n\n{caption}\n\n{detail}\n")
    plot.latency(rows, head, folder / "latency.png")
    pictures = "latency.png"
    if any(row["int8_top1"] is not None for row in rows):
        plot.accuracy_against_cost(rows, head, folder / "accuracy.png")
        pictures += " and accuracy.png"
    say(f"latency.json, .csv, .md, {pictures} in {folder}")


def _by_model(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table with a row for each model and a column for each engine."""
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    of_model = [rows[i : i + len(engines)] for i in range(0, len(rows), len(engines))]
    cells = [
        [*_facts(same[0]), *(f"{row['int8_ms']:.2f} ({row['speedup']:.2f}x)" for row in same)] for same in of_model
    ]
    return [*HEADER, *engines], cells


def _facts(row: dict) -> list[str]:
    return [
        _name(row),
        f"{row['params'] / 1e6:.2f} M",
        f"{row['flops'] / 1e9:.3f} G",
        "" if row["conv_flops_32"] is None else f"{row['conv_flops_32'] / 1e6:.2f} M",
        f"{row['float_mb']:.2f}",
        f"{row['int8_mb']:.2f}",
        f"{row['integer_macs_percent']:.1f} %",
        f"{row['as_built_ms']:.2f}",
        f"{row['float_ms']:.2f}",
    ]


def _detail(row: dict) -> list[str]:
    def ms(key: str) -> str:
        return f"{row[key]:.2f} ({row[f'{key}_p10']:.2f}-{row[f'{key}_p90']:.2f})"

    times = [ms("as_built_ms"), ms("float_ms"), ms("int8_ms")]
    return [_name(row), row["engine"], *times, f"{row['speedup_as_built']:.2f}", f"{row['speedup']:.2f}"]


def _name(row: dict) -> str:
    return f"{row['model']} @{row['image_size']}"
