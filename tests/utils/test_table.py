"""Tables align."""

from utils.table import markdown_table, text_table


def test_tables_align():
    assert text_table(["", "n"], [["a", "1"], ["long", "22"]]) == "       n\n--------\na      1\nlong  22"


def test_no_cell_ends_its_line_or_its_column():
    assert text_table(["a\nb"], [["\x1b[2J"]]).splitlines() == [r"a\x0ab", "-------", r"\x1b[2J"]
    assert markdown_table(["a"], [["b|c\n"]]).splitlines()[2] == r"| b\|c\x0a |"
