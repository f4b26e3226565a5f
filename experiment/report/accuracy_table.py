"""The accuracy table: float, simulation and engines in rows, without what says nothing."""

from utils.table import text_table

HEADER = ["", "top-1 %", "gap", "top-5 %", "loss", "agreement %", "bit-equal %", "MB"]


def accuracy_table(result: dict) -> str:
    """Measurement.result of quant.measure as a text table with one row for each of float, simulated and the engines.

    Engines that are equal to the bit share a row. Columns without any number, and a top-5 of five classes, are left
    out. gap: top-1 less that of the float model, where it was measured.
    """
    (header, rows), shared = columns(result), _equal_engines(result)
    rows = [row for row in rows if row[0] not in shared[1:]]
    if len(shared) > 1:
        rows = [[f"{len(shared)} engines" if row[0] == shared[0] else row[0], *row[1:]] for row in rows]
    table = text_table(header, rows)
    if "simulated" not in result["accuracy"]:
        return table
    packed = f"packed at its own bit-widths: {result['size_mb_at_bits']:.3f} MB"
    names = [f"{len(shared)} engines, all bit-equal: {', '.join(shared)}"] if len(shared) > 1 else []
    return "\n\n".join([table, *result.get("failed", {}).values(), "\n".join([*names, packed])])


def columns(result: dict) -> tuple[list[str], list[list[str]]]:
    """(header, a row for each model) with the columns that say something."""
    rows, few_classes = _rows(result), all(score["top5"] == 100 for score in result["accuracy"].values())
    shown = [i for i, title in enumerate(HEADER) if any(row[i] for row in rows) and not (few_classes and "5" in title)]
    return [HEADER[i] for i in shown], [[row[i] for i in shown] for row in rows]


def _equal_engines(result: dict) -> list[str]:
    """The engines that have the size of the first of them and all logits of the simulation."""
    equal = [name for name, percent in result.get("bit_equal", {}).items() if percent == 100]
    return [name for name in equal if result["size_mb"].get(name) == result["size_mb"].get(equal[0])]


def _rows(result: dict) -> list[list[str]]:
    rows = []
    known = result["accuracy"].get("float")
    for name, score in result["accuracy"].items():
        engine = name in result.get("agreement", {})
        size = result["size_mb"].get(name)
        rows.append(
            [
                name,
                f"{score['top1']:.2f}",
                f"{score['top1'] - known['top1']:+.2f}" if known and name != "float" else "",
                f"{score['top5']:.2f}",
                f"{score['loss']:.4f}",
                f"{result['agreement'][name]:.2f}" if engine else "",
                f"{result['bit_equal'][name]:.2f}" if engine else "",
                "" if size is None else f"{size:.3f}",
            ]
        )
    return rows
