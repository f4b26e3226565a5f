"""Aligned tables in plain text and in Markdown."""

from collections.abc import Sequence

from utils.names import printable


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text. The first column is aligned left, the others right."""
    lines = ["  ".join(row).rstrip() for row in _aligned(header, rows)]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table in Markdown."""
    aligned = _aligned(_without_bars(header), [_without_bars(row) for row in rows])
    rule = ["-" * len(cell) if i == 0 else "-" * (len(cell) - 1) + ":" for i, cell in enumerate(aligned[0])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [aligned[0], rule, *aligned[1:]])


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return [
        [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        for row in cells
    ]


def _without_bars(row: Sequence[str]) -> list[str]:
    """Cells in which no bar ends a column."""
    return [cell.replace("|", "\\|") for cell in row]
