"""The latency table: on the screen, in files, as a picture."""

from pathlib import Path

from utils import files, plot
from utils.table import markdown_table, text_table

HEADER = ["model", "engine", "params", "FLOPs", "@32", "MB", "MB INT8", "as built", "float", "INT8"]
HEADER += ["x as built", "x float"]
CAPTION = (
    "FLOPs: 2 x the multiply-accumulates of convolutions and linear layers; @32: of convolutions alone, at 32 x 32. "
    "Milliseconds, median (10th to 90th percentile) of {repeats} runs by turns, threads: {threads}. As built: the "
    "float net as it comes, eager, NCHW. Float: its best form here, batch norm folded, channels_last, one TorchScript "
    "program, as INT8 is run. x: how many times faster INT8 is."
)


def report(rows: list[dict], repeats: int, machine: dict, folder: Path) -> None:
    """Print the rows of latency.py and write them to a folder: latency.json, .csv, .md, .png and environment.json."""
    flags, first = " ".join(machine["cpu_flags"]), rows[0]
    head = f"{machine['cpu']} ({flags}), torch {machine['torch']}, batch {first['batch_size']}"
    caption = CAPTION.format(repeats=repeats, threads=first["threads"])
    cells = [_cells(row) for row in rows]
    files.write_json(folder / "latency.json", rows)
    files.write_json(folder / "environment.json", machine)
    files.write_csv(folder / "latency.csv", rows)
    files.write_text(folder / "latency.md", f"{head}\n\n{markdown_table(HEADER, cells)}\n\n{caption}\n")
    plot.latency(rows, head, folder / "latency.png")
    pictures = "latency.png"
    if any(row["int8_top1"] is not None for row in rows):
        plot.accuracy_against_cost(rows, head, folder / "accuracy.png")
        pictures += " and accuracy.png"
    print(f"{head}\n\n{text_table(HEADER, cells)}\n\n{caption}\nlatency.json, .csv, .md, {pictures} in {folder}")


def _cells(row: dict) -> list[str]:
    def ms(key: str) -> str:
        return f"{row[key]:.2f} ({row[f'{key}_p10']:.2f}-{row[f'{key}_p90']:.2f})"

    return [
        f"{row['model']} @{row['image_size']}",
        row["engine"],
        f"{row['params'] / 1e6:.2f} M",
        f"{row['flops'] / 1e9:.3f} G",
        "" if row["conv_flops_32"] is None else f"{row['conv_flops_32'] / 1e6:.2f} M",
        f"{row['float_mb']:.2f}",
        f"{row['int8_mb']:.2f}",
        f"{row['as_built_ms']:.2f}",
        ms("float_ms"),
        ms("int8_ms"),
        f"{row['speedup_as_built']:.2f}",
        f"{row['speedup']:.2f}",
    ]
