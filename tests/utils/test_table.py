"""Tables align."""

from utils.table import text_table


def test_tables_align():
    assert text_table(["", "n"], [["a", "1"], ["long", "22"]]) == "       n\n--------\na      1\nlong  22"
