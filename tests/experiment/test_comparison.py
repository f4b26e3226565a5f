"""`evaluate.py compare=[...]`: a page of finished runs, and what it refuses."""

import json

import pytest

from experiment import evaluation, training
from utils.errors import UserError

SMALL = ["data.name=fake", "data.image_size=16", "data.limit=64", "data.batch_size=32", "model.name=tests.nets:plain"]
SMALL += ["run.epochs=1", 'run.engines=["reference"]', "quant.method=lsq"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for bits in (4, 8):
        training.main([*SMALL, f"run.dir={folder}", f"run.name=bits{bits}", f"quant.weight_bits={bits}"])
    return folder


def compare(*folders, output=None, more=()):
    chosen = [] if output is None else [f"output={output}"]
    evaluation.main([f"compare={json.dumps([str(folder) for folder in folders])}", *chosen, *more])


def test_runs_are_compared_without_a_checkpoint(runs, tmp_path, capsys):
    for name in ("bits4", "bits8"):
        (runs / name / "last.pt").rename(tmp_path / name)
    compare(runs / "bits4", runs / "bits8", output=tmp_path / "out")
    for name in ("bits4", "bits8"):
        (tmp_path / name).rename(runs / name / "last.pt")
    said = capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    for name in ("bits4", "bits8"):
        top1 = json.loads((runs / name / "summary.json").read_text())["accuracy"]["reference"]["top1"]
        assert f"{top1:.2f}" in said
        assert f"{top1:.2f}" in page
        assert name in page
    assert "quant.weight_bits" in page
    assert "optim.lr" not in page, "the same in both"
    assert "run.name" not in page
    assert page.count("<svg") == 3


def test_runs_of_one_name_have_their_paths(runs, tmp_path):
    (tmp_path / "bits4").symlink_to(runs / "bits4")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "bits4").symlink_to(runs / "bits4")
    compare(tmp_path / "bits4", tmp_path / "other" / "bits4", output=tmp_path)
    assert f"{tmp_path}/other/bits4" in (tmp_path / "report.html").read_text()


def test_without_an_output_the_page_is_among_the_runs(runs, tmp_path, monkeypatch):
    (tmp_path / "empty.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    compare(runs / "bits4", more=["-c", "empty.json"])
    assert (tmp_path / "runs" / "compare" / "report.html").is_file()


def test_what_is_no_finished_run_is_refused(runs, tmp_path):
    with pytest.raises(UserError, match=rf"compare: {tmp_path}/none holds no finished run \(summary.json\)$"):
        compare(runs / "bits4", tmp_path / "none")
    with pytest.raises(UserError, match=rf"compare: {runs} is a sweep's: name the folders of its cells$"):
        compare(runs)


@pytest.mark.parametrize("key", ["data.limit=5", "sensitivity=true", 'engines=["x86"]', "checkpoint=a.pt"])
def test_a_key_that_would_have_no_effect_is_refused(key, runs):
    name = key.partition("=")[0]
    with pytest.raises(UserError, match=rf"^command line: {name}: `compare` reads the results of finished runs"):
        compare(runs / "bits4", more=[key])


@pytest.mark.parametrize(
    ("file", "contents"),
    [
        ("summary.json", '{"accuracy": {"float": {"top1": "high"}}}'),
        ("summary.json", '{"accuracy": {}}'),
        ("summary.json", '{"accuracy": {"float": 3}, "agreement": [], "size_mb": 1}'),
        ("metrics.csv", "epoch,stage,train_loss\n1,lsq,low\n"),
        ("metrics.csv", "epoch,stage\n1,lsq\n"),
        ("config.json", "[]"),
        ("environment.json", "{"),
    ],
)
def test_files_of_others_are_one_line(file, contents, runs, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("summary.json", "metrics.csv", "config.json"):
        (tmp_path / "run" / name).write_text((runs / "bits4" / name).read_text())
    (tmp_path / "run" / file).write_text(contents)
    with pytest.raises(UserError, match=rf"{tmp_path}/run.*: not what train.py writes there"):
        compare(tmp_path / "run", output=tmp_path)
