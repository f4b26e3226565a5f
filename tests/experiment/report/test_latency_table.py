"""The latency table has a row for each model and a column for each engine, printed and in every file."""

import csv
import json

from experiment.report import latency_table

MACHINE = {"cpu": "A CPU", "cpu_flags": ["avx2"], "torch": "2.0"}


def row(model: str, engine: str, int8_ms: float) -> dict:
    found = {"model": model, "engine": engine, "image_size": 32, "batch_size": 1, "threads": 2}
    for form, ms in (("as_built", 6.0), ("float", 4.0), ("int8", int8_ms)):
        found |= {f"{form}_ms": ms, f"{form}_ms_p10": ms - 0.5, f"{form}_ms_p90": ms + 0.5}
    found |= {"speedup": 4.0 / int8_ms, "speedup_as_built": 6.0 / int8_ms, "params": 270_000, "macs": 40_000_000}
    found |= {"flops": 80_000_000, "conv_flops_32": None, "float_mb": 1.08, "int8_mb": 0.27}
    found |= {"float_images_per_s": 250.0, "int8_images_per_s": 1000 / int8_ms, "integer_macs_percent": 98.76}
    found["bit_equal_percent"] = 100.0
    return found | {"float_form": "jit", "float_top1": None, "int8_top1": None}


ROWS = [row(model, engine, ms) for model, ms in (("a", 2.0), ("b", 1.0)) for engine in ("x86", "onednn")]


def test_every_file_is_written_and_the_table_is_printed(tmp_path, capsys):
    latency_table.report(ROWS, 7, MACHINE, tmp_path)
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / "latency.json").read_text()) == ROWS
    assert json.loads((tmp_path / "environment.json").read_text()) == MACHINE
    with (tmp_path / "latency.csv").open() as file:
        assert [float(found["int8_ms"]) for found in csv.DictReader(file)] == [2, 2, 1, 1]
    for text in (printed, (tmp_path / "latency.md").read_text()):
        assert "A CPU (avx2), torch 2.0, batch 1" in text
        assert "median of 7 interleaved runs, threads: 2" in text
    assert (tmp_path / "latency.png").stat().st_size
    assert not (tmp_path / "accuracy.png").exists(), "no accuracy is known"


def test_a_row_for_each_model_and_a_column_for_each_engine(tmp_path, capsys):
    latency_table.report(ROWS, 7, MACHINE, tmp_path)
    blocks = (tmp_path / "latency.md").read_text().split("\n\n")
    header, _, *lines = next(block for block in blocks if block.startswith("|")).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *lines)]
    assert cells[0][-2:] == ["x86", "onednn"]
    assert cells[1] == [
        "a @32",
        "0.27 M",
        "0.080 G",
        "",
        "1.08",
        "0.27",
        "98.8 %",
        "6.00",
        "4.00",
        *["2.00 (2.00x)"] * 2,
    ]
    assert cells[2][0] == "b @32"
    assert cells[2][-2:] == ["1.00 (4.00x)"] * 2


def test_an_engine_that_failed_with_one_model_has_an_empty_cell_there(tmp_path, capsys):
    latency_table.report([row("a", "x86", 2.0), *ROWS[2:]], 7, MACHINE, tmp_path)
    of_a, of_b = (line for line in capsys.readouterr().out.splitlines() if line[1:6] == " @32 ")
    assert of_a.endswith("2.00 (2.00x)")
    assert of_b.endswith("1.00 (4.00x)  1.00 (4.00x)")


def test_batches_and_threads_have_rows_and_images_a_second(tmp_path, capsys):
    several = [
        row("a", engine, 2.0) | {"batch_size": batch, "threads": threads, "int8_images_per_s": 500.0 * batch}
        for threads in (1, 2)
        for batch in (1, 8)
        for engine in ("x86", "onednn")
    ]
    latency_table.report(several, 7, MACHINE, tmp_path)
    printed = capsys.readouterr().out
    assert "batch 1, 8" in printed
    assert "threads: 1, 2" in printed
    header, *lines = (line for line in printed.splitlines() if line.startswith(("model", "a @32")))
    assert header.endswith("float, images/s  x86, images/s  onednn, images/s")
    assert [line.split()[2:4] for line in lines] == [["1", "1"], ["8", "1"], ["1", "2"], ["8", "2"]]
    assert [line.split()[-3:] for line in lines] == [["250", "500", "500"], ["250", "4000", "4000"]] * 2


def test_an_engine_that_is_not_exact_is_marked(tmp_path, capsys):
    latency_table.report([ROWS[0], ROWS[1] | {"bit_equal_percent": 87.5}], 7, MACHINE, tmp_path)
    printed = capsys.readouterr().out
    assert "2.00 (2.00x)  2.00 (2.00x) *" in printed
    assert "*: not exact here" in printed
    latency_table.report(ROWS[:2], 7, MACHINE, tmp_path)
    assert "*" not in capsys.readouterr().out
