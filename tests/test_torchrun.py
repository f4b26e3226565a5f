"""Several processes train as one: torchrun with gloo, on the CPU."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from utils import tensors

ROOT = Path(__file__).resolve().parent.parent
RUN = ["data.image_size=16", "data.batch_size=60", "data.limit=300", 'run.engines=["reference"]', "run.name=run"]
PLAIN = ["model.name=tests.nets:plain", "data.augment=true", "data.val_fraction=0.2", "optim.lr=0.05"]
DUMP = """
import os, sys, torch, train
fit = train.fit
def dumped(*arguments):
    model = fit(*arguments)
    torch.save(model.state_dict(), f"{sys.argv[1]}/rank{os.environ['RANK']}.pt")
    return model
train.fit = dumped
train.main(sys.argv[2:])
"""


def torchrun(*command: str, restarts: int = 0) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.Popen(
        [*launcher, f"--max-restarts={restarts}", *command],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def alone(*command: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def rows(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / "run" / "metrics.csv").read_text().splitlines()))


@pytest.mark.parametrize(
    "method",
    [
        ["quant.method=float"],
        ["quant.method=lsq", "quant.weight_bits=4", "quant.act_bits=4"],
        ["quant.method=statassist", "quant.float_epochs=1", "optim.name=qsgd"],
    ],
    ids=["float", "lsq", "statassist"],
)
def test_two_processes_learn_what_one_does(method, tmp_path):
    """With a net that has no batch norm, whose statistics are of each process's own images."""
    (tmp_path / "dump.py").write_text(DUMP)
    command = [*RUN, *PLAIN, *method, "run.epochs=2"]
    alone("train.py", *command, f"run.dir={tmp_path / 'one'}")
    both = torchrun(str(tmp_path / "dump.py"), str(tmp_path), *command, f"run.dir={tmp_path / 'two'}")
    out, said = both.communicate()
    assert both.returncode == 0, said
    assert "2 processes on cpu" in out
    assert out.count("epoch   1/2") == 1, "one process speaks"

    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(torch.equal(value, ranks[1][name]) for name, value in ranks[0].items()), "processes agree to the bit"
    whole, shared = (tensors.load(str(tmp_path / name / "run" / "last.pt"))["model"] for name in ("one", "two"))
    exact = method == ["quant.method=float"]  # a value on an edge between two integers may fall to either side
    for name, value in whole.items():
        assert torch.allclose(value.float(), shared[name].float(), rtol=0, atol=1e-5 if exact else 2e-2), name
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    for kind in ("top1", "top5") if exact else ():
        for part in ("train", "val"):
            assert [row[f"{part}_{kind}"] for row in one] == [row[f"{part}_{kind}"] for row in two], "counted once each"


def test_first_ranges_are_those_of_the_whole_batch(tmp_path):
    """LSQ's steps and PACT's clips, found on the first batch, and observed ranges: as in one process."""
    command = [*RUN, *PLAIN, "run.epochs=1", "data.limit=60", "data.val_fraction=0", "optim.lr=1e-20"]
    for method in ("lsq", "pact", "statassist"):
        keys = [*command, f"quant.method={method}"] + (["quant.float_epochs=0"] if method == "statassist" else [])
        alone("train.py", *keys, f"run.dir={tmp_path / method / 'one'}")
        both = torchrun("train.py", *keys, f"run.dir={tmp_path / method / 'two'}")
        _, said = both.communicate()
        assert both.returncode == 0, said
        one, two = (tensors.load(str(tmp_path / method / n / "run" / "last.pt"))["model"] for n in ("one", "two"))
        learned = [name for name in one if name.rpartition(".")[2] in ("s", "alpha", "low", "high")]
        assert len(learned) > 4
        for name in learned:
            assert torch.allclose(one[name], two[name], rtol=1e-5), name


def worker(parent: int, rank: int) -> int:
    """The process id of a rank."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError("no such process")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_where_a_process_is_killed_torchrun_starts_all_again_and_the_run_goes_on(tmp_path):
    keys = [*RUN, "run.epochs=12", "run.checkpoint_minutes=0.0001", f"run.dir={tmp_path}"]
    both = torchrun("train.py", *keys, restarts=1)
    while not (tmp_path / "run" / "last.prev.pt").exists() and both.poll() is None:
        time.sleep(0.01)
    os.kill(worker(both.pid, 1), signal.SIGKILL)
    out, said = both.communicate()
    assert both.returncode == 0, said
    assert "going on in epoch" in out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 12
    assert [int(row["epoch"]) for row in rows(tmp_path)] == list(range(1, 13))


def test_all_processes_stop_at_the_same_step(tmp_path):
    keys = [*RUN, "run.epochs=200", f"run.dir={tmp_path}"]
    both = torchrun("train.py", *keys)
    while not (tmp_path / "run" / "last.prev.pt").exists() and both.poll() is None:
        time.sleep(0.01)
    both.send_signal(signal.SIGTERM)
    both.communicate(timeout=60)
    assert both.returncode != 0
    log = (tmp_path / "run" / "run.log").read_text()
    state = tensors.load(str(tmp_path / "run" / "last.pt"))
    assert state["epoch"] >= log.count("float  ") + log.count("statassist  ") - 1
    again = torchrun("train.py", *keys, "run.epochs=200")
    while "going on in epoch" not in (tmp_path / "run" / "run.log").read_text() and again.poll() is None:
        time.sleep(0.05)
    again.kill()
    again.communicate()
    assert "going on in epoch" in (tmp_path / "run" / "run.log").read_text()
