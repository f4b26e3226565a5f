"""Several processes train as one: torchrun with gloo, on the CPU."""

import contextlib
import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from experiment import training
from utils.runs import tensor_file

ROOT = Path(__file__).resolve().parent.parent
RUN = ["data.image_size=16", "data.batch_size=60", "data.limit=300", 'run.engines=["reference"]', "run.name=run"]
PLAIN = ["model.name=tests.nets:plain", "data.augment=crop", "data.val_fraction=0.2", "optim.lr=0.05"]
LEARN = {
    "float": ["quant.method=float", "run.epochs=2"],
    "lsq": ["quant.method=lsq", "quant.weight_bits=4", "quant.act_bits=4", "run.epochs=2"],
    "statassist": ["quant.method=statassist", "quant.float_epochs=1", "optim.name=qsgd", "run.epochs=2"],
}
START = {method: ["optim.lr=1e-20", "run.epochs=1", f"quant.method={method}"] for method in ("lsq", "pact")}
START["statassist"] = ["optim.lr=1e-20", "run.epochs=1", "quant.method=statassist", "quant.float_epochs=0"]
NETS = ("unused", "synced", "dropout", "all_of_them")
"""Of tests/nets_of_processes.py."""
UNEVEN = ["data.batch_size=45", "data.augment=crop", "data.val_fraction=0.2", "optim.lr=0.05"]
"""One process has an image more than the other."""
IN_A_ROW = """
import json, os, sys, torch
from experiment import training
from experiment.session import Session
fit = Session.fit
def dumped(session):
    fit(session)
    torch.save(session.model.state_dict(), f"{session.settings.run.dir}/rank{os.environ['RANK']}.pt")
Session.fit = dumped
for arguments, port in zip(json.loads(sys.argv[1]), json.loads(sys.argv[2])):
    os.environ["MASTER_PORT"] = str(port)  # of its own: the process that is ready first must not meet the run before
    training.main(arguments)
"""


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def both(commands: list[list[str]]) -> str:
    """Run train.py with each of these arguments in the same two processes; what they printed."""
    ports = free_ports(len(commands))
    meeting = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", IN_A_ROW, json.dumps(commands), json.dumps(ports)],
            cwd=ROOT,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **meeting),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    found = [process.communicate(timeout=300) for process in processes]
    assert all(process.returncode == 0 for process in processes), found
    assert found[1][0] == "", "one process speaks"
    return found[0][0]


def torchrun(*arguments: str, restarts: int = 0) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.Popen(
        [*launcher, f"--max-restarts={restarts}", "train.py", *arguments],
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def rows(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / "run" / "metrics.csv").read_text().splitlines()))


def state(folder: Path) -> dict[str, torch.Tensor]:
    return tensor_file.load(str(folder / "run" / "last.pt"))["model"]


def test_two_processes_learn_what_one_does(tmp_path):
    """With a net that has no batch norm, whose statistics are of each process's own images."""
    learn = {name: [*RUN, *PLAIN, *keys] for name, keys in LEARN.items()}
    start = {f"{name} starts": [*RUN, *PLAIN, "data.limit=60", "data.val_fraction=0", *START[name]] for name in START}
    every = learn | start
    for name, command in every.items():
        (tmp_path / "two" / name).mkdir(parents=True)
        training.main([*command, f"run.dir={tmp_path / 'one' / name}"])
    out = both([[*command, f"run.dir={tmp_path / 'two' / name}"] for name, command in every.items()])
    assert out.count("2 processes on cpu") == len(every)

    for name in learn:
        ranks = [torch.load(tmp_path / "two" / name / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
        assert all(torch.equal(value, ranks[1][key]) for key, value in ranks[0].items()), "processes agree to the bit"
        whole, shared = state(tmp_path / "one" / name), state(tmp_path / "two" / name)
        exact = name == "float"  # a value on an edge between two integers may fall to either side
        for key, value in whole.items():
            assert torch.allclose(value.float(), shared[key].float(), rtol=0, atol=1e-5 if exact else 2e-2), key
    one, two = rows(tmp_path / "one" / "float"), rows(tmp_path / "two" / "float")
    for key in ("train_top1", "train_top5", "val_top1", "val_top5"):
        assert [row[key] for row in one] == [row[key] for row in two], "each image is counted once"
    for name in start:
        whole, shared = state(tmp_path / "one" / name), state(tmp_path / "two" / name)
        learned = [key for key in whole if key.rpartition(".")[2] in ("s", "alpha", "low", "high")]
        assert len(learned) > 4
        for key in learned:
            assert torch.allclose(whole[key], shared[key], rtol=1e-5), f"{name}: {key} is found on the whole batch"


def test_two_processes_learn_what_one_does_where_layers_see_the_whole_batch_or_nothing(tmp_path):
    """SyncBatchNorm, dropout, and layers that forward does not reach, in float and with fake-quantization."""
    model = "model.name=tests.nets_of_processes:"
    every = {f"float {net}": [*RUN, *UNEVEN, f"{model}{net}", *LEARN["float"]] for net in NETS}
    every |= {f"{name} all": [*RUN, *UNEVEN, f"{model}all_of_them", *LEARN[name]] for name in ("lsq", "statassist")}
    for name, command in every.items():
        (tmp_path / "two" / name).mkdir(parents=True)
        training.main([*command, f"run.dir={tmp_path / 'one' / name}"])
    both([[*command, f"run.dir={tmp_path / 'two' / name}"] for name, command in every.items()])

    for name in every:
        ranks = [torch.load(tmp_path / "two" / name / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
        assert all(torch.equal(value, ranks[1][key]) for key, value in ranks[0].items()), "processes agree to the bit"
        whole, shared = state(tmp_path / "one" / name), state(tmp_path / "two" / name)
        assert whole.keys() == shared.keys()
        for key, value in whole.items():
            close = 2e-5 if name.startswith("float") else 2e-2
            assert torch.allclose(value.float(), shared[key].float(), rtol=1e-4, atol=close), f"{name}: {key}"


def worker(parent: int, rank: int) -> int:
    """The process id of a rank."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError("no such process")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_where_a_process_is_killed_torchrun_starts_all_again_and_the_run_goes_on(tmp_path):
    keys = [*RUN, "run.epochs=6", "run.checkpoint_minutes=0.0001", f"run.dir={tmp_path}"]
    launched = torchrun(*keys, restarts=1)
    while not (tmp_path / "run" / "last.prev.pt").exists() and launched.poll() is None:
        time.sleep(0.01)
    os.kill(worker(launched.pid, 1), signal.SIGKILL)
    out, said = launched.communicate()
    assert launched.returncode == 0, said
    assert "continuing in epoch" in out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 6
    assert [int(row["epoch"]) for row in rows(tmp_path)] == list(range(1, 7))


def test_all_processes_stop_at_the_same_step(tmp_path):
    keys = [*RUN, "run.epochs=200", f"run.dir={tmp_path}"]
    launched = torchrun(*keys)
    while not (tmp_path / "run" / "last.prev.pt").exists() and launched.poll() is None:
        time.sleep(0.01)
    launched.send_signal(signal.SIGTERM)
    _, said = launched.communicate(timeout=60)
    assert launched.returncode != 0
    assert "the same command continues from" in said
    log = (tmp_path / "run" / "run.log").read_text()
    saved = tensor_file.load(str(tmp_path / "run" / "last.pt"))
    assert saved["epoch"] >= log.count("float  ") + log.count("statassist  ") - 1
    at = str(saved["training"]["step"]), str(saved["epoch"] + 1)
    assert set(re.findall(r"stopped after step (\d+) of epoch (\d+)", said)) <= {at}, "said where it was in an epoch"
    again = torchrun(*keys)
    while "continuing in epoch" not in (tmp_path / "run" / "run.log").read_text() and again.poll() is None:
        time.sleep(0.05)
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    assert "continuing in epoch" in (tmp_path / "run" / "run.log").read_text()
