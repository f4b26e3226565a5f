"""The accuracy table: float, simulation and engines in rows."""

from utils.table import text_table


def accuracy_table(result: dict) -> str:
    """Measurement.result of quant.measure as a text table with one row for each of float, simulated and the engines."""
    rows = []
    for name, score in result["accuracy"].items():
        engine = name in result.get("agreement", {})
        size = result["size_mb"].get(name)
        rows.append(
            [
                name,
                f"{score['top1']:.2f}",
                f"{score['top5']:.2f}",
                f"{score['loss']:.4f}",
                f"{result['agreement'][name]:.2f}" if engine else "",
                f"{result['bit_equal'][name]:.2f}" if engine else "",
                "" if size is None else f"{size:.3f}",
            ]
        )
    table = text_table(["", "top-1 %", "top-5 %", "loss", "agreement %", "bit-equal %", "MB"], rows)
    if "simulated" not in result["accuracy"]:
        return table
    packed = f"packed at its own bit-widths: {result['size_mb_at_bits']:.3f} MB"
    return "\n\n".join([table, *result.get("failed", {}).values(), packed])
