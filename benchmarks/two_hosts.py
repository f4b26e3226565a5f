"""Train on two hosts with torchrun what one host trains, and again with a host that dies in the middle and comes back.

    python -m benchmarks.two_hosts

Needs root: the hosts are two network namespaces of this machine, which share nothing but the file system. Each has a
name and an address of its own, and one cable leads from one to the other. A host dies without a word: its end of the
cable is pulled, and its processes are killed. Ends with exit code 1 unless the trained weights are the same to the bit.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from utils.runs import tensor_file

HOSTS = {"host1": "10.77.0.1", "host2": "10.77.0.2"}
PORT = 29500
TRAIN = ["train.py", "data.image_size=16", "data.batch_size=60", "data.limit=300", "run.engines=reference"]
RUN = ["run.device=cpu", "run.epochs=8", "run.checkpoint_minutes=0.0001", "run.name=run"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=3"]

AWAY = 30
"""Seconds; for 15 of them torchrun counts a dead host as there."""
NO_SHARED_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Else a torchrun that is started anew waits for an address that the others have only said to the one before it."""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"} | NO_SHARED_STORE
NAMED = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'
"""Runs a command on a host of this name, which knows both by name. (What is mounted within `ip netns exec` is seen only
there.)"""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if os.geteuid():
        sys.exit("two_hosts needs root, to make network namespaces")
    folder = Path(tempfile.mkdtemp())
    one = subprocess.run(
        [*TORCHRUN, "--standalone", "--nproc_per_node=2", *TRAIN, *RUN, f"run.dir={folder / 'one'}"], env=ENVIRONMENT
    )
    with network():
        finished = [ends(started(folder / "two")), ends(with_a_death(folder / "death"))]
    same = [torch.equal(weights(folder / "one"), weights(folder / name)) for name in ("two", "death")]
    print(f"two hosts train the weights of one, to the bit: {same[0]}; so where one dies and comes back: {same[1]}")
    sys.exit(one.returncode or not all(finished + same))


def started(folder: Path) -> dict[str, subprocess.Popen]:
    """A run on both hosts."""
    return {host: start(host, folder) for host in HOSTS}


def start(host: str, folder: Path) -> subprocess.Popen:
    """torchrun on a host, with one process."""
    meeting = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=host1:{PORT}"]
    names = folder.with_name("hosts")
    names.write_text("".join(f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **HOSTS}.items()))
    inside = ["ip", "netns", "exec", host, "unshare", "--uts", "sh", "-c", NAMED, host, str(names)]
    return subprocess.Popen([*inside, *TORCHRUN, *meeting, *TRAIN, *RUN, f"run.dir={folder}"], env=ENVIRONMENT)


def ends(processes: dict[str, subprocess.Popen]) -> bool:
    """Wait for them. Whether all succeed."""
    codes = [process.wait() for process in processes.values()]
    return not any(codes)


def with_a_death(folder: Path) -> dict[str, subprocess.Popen]:
    """A run on both hosts, the second of which dies in the middle, and comes back."""
    processes = started(folder)
    while not (folder / "run" / "last.prev.pt").exists():
        time.sleep(0.05)
    die("host2")
    processes["host2"].wait()
    print("host2 is dead", flush=True)
    time.sleep(AWAY)
    began = time.monotonic()
    ip("-n", "host2", "link", "set", "cable", "up")
    processes["host2"] = start("host2", folder)
    while "continuing in epoch" not in (folder / "run" / "run.log").read_text():
        time.sleep(0.05)
    print(f"host2 is back; the run goes on after {time.monotonic() - began:.0f} s", flush=True)
    return processes


def die(host: str) -> None:
    """Pull the cable first, so that nobody is told, and kill all processes."""
    ip("-n", host, "link", "set", "cable", "down")
    for process in ip("netns", "pids", host).split():
        os.kill(int(process), signal.SIGKILL)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Both hosts, and the cable between them."""
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("-n", "host1", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", "host2")
        for host, address in HOSTS.items():
            ip("-n", host, "address", "add", f"{address}/24", "dev", "cable")
            for interface in ("lo", "cable"):
                ip("-n", host, "link", "set", interface, "up")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "delete", host])


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, text=True, stdout=subprocess.PIPE).stdout


def weights(folder: Path) -> torch.Tensor:
    """All numbers of the trained model."""
    model = tensor_file.load(str(folder / "run" / "last.pt"))["model"]
    return torch.cat([value.flatten().double() for value in model.values()])


if __name__ == "__main__":
    main()
