"""--list has a line about every name."""

import pytest

from experiment.registries import TABLES, about, listing


@pytest.mark.parametrize("table", TABLES)
def test_every_name_has_a_line(table):
    lines = listing(table).splitlines()
    assert len(lines) == len(TABLES[table])
    for name, line in zip(TABLES[table], lines, strict=True):
        assert about(table, name), name
        assert line.split()[0] == name
        assert line.endswith(about(table, name))
