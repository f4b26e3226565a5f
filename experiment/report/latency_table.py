"""The latency table: printed, written to files, and drawn."""

from pathlib import Path

from experiment.report import plot
from utils import files
from utils.console import say
from utils.table import markdown_table, text_table

HEADER = ["model", "params", "FLOPs", "@32", "MB", "MB INT8", "in INT8", "float, eager", "float, compiled"]
SIZES = {"batch_size": "batch", "threads": "threads"}
DETAIL = ["model", "engine", "float, eager", "float, compiled", "INT8", "x eager", "x compiled", "images/s"]
CAPTION = (
    "Milliseconds, median of {repeats} interleaved runs, threads: {threads}; under an engine's name those of INT8, and "
    "how many times faster that is than float, compiled. Float, eager: the model unchanged, NCHW. Float, compiled: its "
    "fastest form here, with batch norm folded, channels_last, as one TorchScript program; INT8 runs as one, too. "
    "FLOPs: 2 x the multiply-accumulates of convolutions and linear layers; @32: of convolutions alone, at 32 x 32. "
    "In INT8: the share of the multiply-accumulates that runs in integers."
)
INEXACT = " *: not exact here: some logits of random images are not bit for bit those of the simulation."


def report(rows: list[dict], repeats: int, machine: dict, folder: Path) -> None:
    """Print the rows of experiment/latency.py; write latency.json, .csv, .md, .png and environment.json to a folder.

    repeats: timed calls of each model. machine: utils.environment.environment().
    """
    flags = " ".join(machine["cpu_flags"])
    head = f"{machine['cpu']} ({flags}), torch {machine['torch']}, batch {_all(rows, 'batch_size')}"
    caption = CAPTION.format(repeats=repeats, threads=_all(rows, "threads")) + (
        INEXACT if any(map(_mark, rows)) else ""
    )
    header, cells = _by_subject(rows)
    say(f"{head}\n\n{text_table(header, cells)}\n\n{caption}")  # first: the disk may be full
    files.write_json(folder / "latency.json", rows)
    files.write_json(folder / "environment.json", machine)
    files.write_csv(folder / "latency.csv", rows)
    sizes = _several(rows)
    detailed = markdown_table(
        [*DETAIL[:2], *(SIZES[key] for key in sizes), *DETAIL[2:]], [_detail(r, sizes) for r in rows]
    )
    detail = f"Median (10th to 90th percentile):\n\n{detailed}"
    files.write_text(folder / "latency.md", f"{head}\n\n{markdown_table(header, cells)}\n\n{caption}\n\n{detail}\n")
    plot.latency(rows, head, folder / "latency.png")
    pictures = "latency.png"
    if any(row["int8_top1"] is not None for row in rows):
        plot.accuracy_against_cost(rows, head, folder / "accuracy.png")
        pictures += " and accuracy.png"
    say(f"latency.json, .csv, .md, {pictures} in {folder}")


def _all(rows: list[dict], key: str) -> str:
    return ", ".join(str(value) for value in dict.fromkeys(row[key] for row in rows))


def _several(rows: list[dict]) -> list[str]:
    """Those of batch_size and threads that rows differ in."""
    return [key for key in SIZES if len({row[key] for row in rows}) > 1]


def _by_subject(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table with a row for each model, batch size and number of threads.

    It has a column for each engine; where a batch is larger than one, another for its images a second.
    """
    engines, sizes = list(dict.fromkeys(row["engine"] for row in rows)), _several(rows)
    timed: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        timed.setdefault(plot.subject(row), {})[row["engine"]] = row
    cells = [_row(of_engine, engines, sizes) for of_engine in timed.values()]
    header = [HEADER[0], *(SIZES[key] for key in sizes), *HEADER[1:], *engines]
    if max(row["batch_size"] for row in rows) == 1:
        return header, cells
    rates = [_rates(of_engine, engines) for of_engine in timed.values()]
    titles = [f"{name}, images/s" for name in ("float", *engines)]
    return [*header, *titles], [[*row, *of_row] for row, of_row in zip(cells, rates, strict=True)]


def _row(of_engine: dict[str, dict], engines: list[str], sizes: list[str]) -> list[str]:
    """of_engine: the rows of one model. An engine that failed has an empty cell."""
    first, found = next(iter(of_engine.values())), [of_engine.get(name) for name in engines]
    name, *facts = _facts(first)
    times = [f"{row['int8_ms']:.2f} ({row['speedup']:.2f}x){_mark(row)}" if row else "" for row in found]
    return [name, *(str(first[key]) for key in sizes), *facts, *times]


def _mark(row: dict) -> str:
    return "" if row["bit_equal_percent"] == 100 else " *"


def _rates(of_engine: dict[str, dict], engines: list[str]) -> list[str]:
    first, found = next(iter(of_engine.values())), [of_engine.get(name) for name in engines]
    return [f"{first['float_images_per_s']:.0f}", *(f"{row['int8_images_per_s']:.0f}" if row else "" for row in found)]


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


def _detail(row: dict, sizes: list[str]) -> list[str]:
    def ms(key: str) -> str:
        return f"{row[key]:.2f} ({row[f'{key}_p10']:.2f}-{row[f'{key}_p90']:.2f})"

    times = [ms("as_built_ms"), ms("float_ms"), ms("int8_ms")]
    ratios = [f"{row['speedup_as_built']:.2f}", f"{row['speedup']:.2f}", f"{row['int8_images_per_s']:.0f}"]
    return [_name(row), row["engine"], *(str(row[key]) for key in sizes), *times, *ratios]


def _name(row: dict) -> str:
    return f"{row['model']} @{row['image_size']}"
