"""A sweep runs every cell once, continues where it stopped, and reports cells that fail."""

import csv
import json

import pytest

from experiment import training
from experiment.sweep import cells
from utils.errors import UserError

BASE = {
    "data": {"name": "digits", "image_size": 16, "limit": 128, "batch_size": 64},
    "model": {"name": "resnet20"},
    "run": {"epochs": 1, "engines": ["reference"]},
}


def write(tmp_path, sweep, **sections):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(BASE | sections | {"sweep": sweep}))
    return ["-c", str(path), f"run.dir={tmp_path}/runs"]


def test_cells_are_all_combinations_the_last_axis_fastest():
    found = cells({"quant.act_bits": [2, 4], "recipe": {"a": {"optim.lr": 0.1}, "b": {"quant.method": "lsq"}}})
    assert [cell.name for cell in found] == [
        "act_bits=2,recipe=a",
        "act_bits=2,recipe=b",
        "act_bits=4,recipe=a",
        "act_bits=4,recipe=b",
    ]
    assert found[3].overrides == {"quant.act_bits": 4, "quant.method": "lsq"}


@pytest.mark.parametrize("sweep", [{"quant.act_bits": []}, {"quant.act_bits": [4, 4]}])
def test_empty_and_repeated_cells_are_refused(sweep):
    with pytest.raises(UserError, match="sweep"):
        cells(sweep)


def test_a_mistake_names_its_cell(tmp_path):
    command = write(tmp_path, {"quant.act_bits": [4, 1]}, quant={"method": "lsq"})
    with pytest.raises(UserError, match=rf"^{tmp_path}/grid.json: cell act_bits=1: quant.act_bits: lsq cannot use 1"):
        training.main(command)


def test_a_grid_of_bits_makes_a_table_a_csv_and_a_picture(tmp_path, capsys):
    sweep = {"quant.act_bits": [4, 8], "quant.weight_bits": [4, 8]}
    command = write(tmp_path, sweep, quant={"method": "statassist", "float_epochs": 0})
    training.main(command)
    folder = tmp_path / "runs" / "grid"
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [(row["act_bits"], row["weight_bits"]) for row in rows] == [("4", "4"), ("4", "8"), ("8", "4"), ("8", "8")]
    summary = json.loads((folder / "act_bits=4,weight_bits=8" / "summary.json").read_text())
    assert float(rows[1]["reference_top1"]) == summary["accuracy"]["reference"]["top1"]
    table = (folder / "table.md").read_text()
    assert "weight_bits 4 | weight_bits 8 |" in table
    assert f"{summary['accuracy']['reference']['top1']:.2f}" in table
    page = (folder / "report.html").read_text()
    assert f"{summary['accuracy']['reference']['top1']:.2f}" in page
    assert 'href="act_bits%3D4%2Cweight_bits%3D8/report.html"' in page
    assert (folder / "act_bits=4,weight_bits=8" / "report.html").is_file()
    assert (folder / "table.png").read_bytes().startswith(b"\x89PNG")

    stamp = (folder / "act_bits=4,weight_bits=8" / "summary.json").stat().st_mtime_ns
    capsys.readouterr()
    training.main(command)
    assert capsys.readouterr().out.count("finished before") == 4
    assert (folder / "act_bits=4,weight_bits=8" / "summary.json").stat().st_mtime_ns == stamp
    assert (folder / "table.md").read_text() == table

    training.main([*command, "optim.lr=0.05", 'sweep={"quant.act_bits": [8], "quant.weight_bits": [4, 8]}'])
    assert "finished before" not in capsys.readouterr().out, "another setting is another run"


def test_seeds_are_gathered_and_the_float_net_stands_beside(tmp_path):
    training.main(write(tmp_path, {"run.seed": [5]}, quant={"method": "float"}))
    weights = tmp_path / "runs" / "grid" / "seed=5" / "last.pt"
    sweep = {"recipe": {"LSQ": {"quant.method": "lsq"}, "PACT": {"quant.method": "pact"}}, "run.seed": [1, 2]}
    training.main([*write(tmp_path, sweep, model={"name": "resnet20", "weights": str(weights)}), "run.name=seeds"])
    table = (tmp_path / "runs" / "seeds" / "table.md").read_text()
    float_top1 = json.loads((weights.parent / "summary.json").read_text())["accuracy"]["float"]["top1"]
    assert f"every cell starts from: {float_top1:.2f}" in table
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][2:] == ["LSQ", "PACT"]
    assert table.count("±") == 4


def test_a_single_run_and_a_sweep_do_not_share_a_folder(tmp_path):
    command = write(tmp_path, {"run.seed": [5]}, quant={"method": "float"})
    training.main(command)
    with pytest.raises(UserError, match=r"run.name: .*grid holds the runs of a sweep; give this one another name"):
        training.main([*command, "sweep={}"])
    training.main([*command, "sweep={}", "run.name=alone"])
    with pytest.raises(UserError, match=r"run.name: .*alone is a single run's; give the sweep another name"):
        training.main([*command, "run.name=alone"])


def test_a_failing_cell_is_reported_and_passed_over(tmp_path, capsys):
    sweep = {"recipe": {"bad": {"optim.lr": 1e30}, "good": {"optim.lr": 0.01}}}
    with pytest.raises(UserError, match=r"1 of 2 cells failed; recipe=bad: the loss became"):
        training.main(write(tmp_path, sweep, run=BASE["run"] | {"epochs": 3}))
    assert "good" in (tmp_path / "runs" / "grid" / "table.md").read_text()
    assert not (tmp_path / "runs" / "grid" / "recipe=bad" / "summary.json").exists()


def test_a_cell_that_cannot_work_is_refused_before_any_runs(tmp_path):
    with pytest.raises(UserError, match=r"dorefa cannot use 8 bits"):
        training.main(write(tmp_path, {"quant.weight_bits": [4, 8]}, quant={"method": "dorefa"}))
    with pytest.raises(UserError, match=r"cell weight_bit=4: quant.weight_bit: unknown key, did you mean weight_bits"):
        training.main(write(tmp_path, {"quant.weight_bit": [4]}, quant={"method": "lsq"}))
    assert not (tmp_path / "runs").exists()


def test_a_cell_whose_rerun_fails_is_not_finished_with_the_figures_of_another(tmp_path):
    sweep = {"quant.weight_bits": [8]}
    command = write(tmp_path, sweep, quant={"method": "statassist", "float_epochs": 0}, run=BASE["run"] | {"epochs": 3})
    training.main(command)
    home = tmp_path / "runs" / "grid" / "weight_bits=8"
    for _ in range(2):
        with pytest.raises(UserError, match="1 of 1 cells failed"):
            training.main([*command, "optim.lr=1e30"])
        assert not (home / "summary.json").exists()
        assert "UserError: the loss became" in (home / "error.txt").read_text()


def test_axes_have_their_short_names_where_those_tell_them_apart():
    found = cells({"model.name": ["resnet20"], "optim.name": ["sgd", "adam"], "run.seed": [1]})
    assert found[0].labels == {"model.name": "resnet20", "optim.name": "sgd", "run.seed": "1"}
    assert found[1].name == "model.name=resnet20,optim.name=adam,seed=1"


@pytest.mark.parametrize("sweep", [{"run.dir": ["a", "b"]}, {"recipe": {"a": {"run.name": "../../x"}}}])
def test_no_cell_chooses_its_folder(sweep):
    with pytest.raises(UserError, match=r"sweep: run\.(dir|name) is the same for all cells"):
        cells(sweep)


@pytest.mark.parametrize("key", ["run", "sweep", "sweep.quant.act_bits"])
def test_nor_by_the_section_around_it_and_no_cell_is_a_sweep(key):
    with pytest.raises(UserError, match=rf"^sweep: {key} is the same for all cells"):
        cells({"recipe": {"a": {key: {"epochs": 1}}}})


@pytest.mark.parametrize("given", ["optim.lr=0.2", "model.name=vgg11"])
def test_a_key_that_cells_lay_over_cannot_be_given(given, tmp_path):
    sweep = {"recipe": {"a": {"optim.lr": 0.1}, "b": {"model": {"name": "resnet32"}}}}
    with pytest.raises(UserError, match=r"^command line: .*: cell recipe=[ab] of the sweep sets .* itself$"):
        training.main([*write(tmp_path, sweep), given])


def test_cells_that_are_to_begin_anew_do(tmp_path, capsys):
    command = write(tmp_path, {"run.seed": [1]})
    training.main(command)
    training.main([*command, "run.resume=never"])
    assert "finished before" not in capsys.readouterr().out
    assert (tmp_path / "runs" / "grid" / "seed=1.1" / "last.pt").is_file()
