"""Train the cells of a sweep one after the other, and again on two nodes of Ray, of which one is killed in the middle.

    python -m benchmarks.sweep_on_ray --folder /tmp/sweep_on_ray

Prints what differs, and ends with exit code 1, unless tables and weights are the same to the bit. The nodes are
processes of this machine, of one CPU each (ray.cluster_utils); Ray knows them as two machines.
"""

import argparse
import contextlib
import csv
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from utils.runs import tensor_file

NET = ["model.name=tests.nets:plain", "data.image_size=16", "data.limit=256", "data.batch_size=32"]
RUN = ["optim.name=adam", "optim.lr=0.01", "run.epochs=30", "run.engines=reference", "run.device=cpu", "run.name=grid"]
BITS = [2, 3, 4, 5, 6, 8]
QUICK_TO_NOTICE = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 3}
"""Ray's own take some 15 seconds to give up a node that does not answer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="for the runs; it must not be there yet")
    folder = parser.parse_args().folder or Path(tempfile.mkdtemp())
    began = time.monotonic()
    said, different = compare(folder, BITS)
    print(said)
    seconds = time.monotonic() - began
    print(f"{len(cells(folder / 'ray'))} cells; {seconds:.0f} s in all; different: {different or 'nothing'}")
    sys.exit(bool(different))


def compare(folder: Path, bits: list[int]) -> tuple[str, list[str]]:
    """(what the sweep on Ray said, what is different there) for two kinds of weights and these bits of activations."""
    here, there = folder / "here", folder / "ray"
    sweep = f'sweep={{"quant.weight_bits":[4,8],"quant.act_bits":{bits}}}'
    started([sweep, f"run.dir={here}"]).communicate()
    with two_nodes() as (address, kill_one):
        program = started([sweep, f"run.dir={there}", "sweep.on=ray", f"sweep.address={address}"])
        while program.poll() is None and len(list(there.glob("grid/*/last.prev.pt"))) < 2:  # both nodes are at work
            time.sleep(0.05)
        kill_one()
        said, _ = program.communicate()
    return said, differences(here, there)


def started(keys: list[str]) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "train.py", *NET, *RUN, *keys], env=environment, text=True, stdout=subprocess.PIPE
    )


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[str, Any]]:
    """Two nodes of Ray, of one CPU each. Yields (the address of the first, a function that kills the second)."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    head = node | {"include_dashboard": False, "_system_config": QUICK_TO_NOTICE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        second = cluster.add_node(**node)
        yield cluster.address, lambda: kill(cluster, second)
    finally:
        cluster.shutdown()


def kill(cluster: Any, node: Any) -> None:
    """Kill a node with its workers, as when a machine dies. Without it they would live on for a second."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = [path.read_text().split() for path in Path(f"/proc/{raylet}/task").glob("*/children")]
    for process in [raylet, *map(int, itertools.chain(*children))]:
        os.kill(process, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)


def cells(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("grid/*/summary.json"))


def differences(here: Path, there: Path) -> list[str]:
    """What differs between two sweeps, but for the time it took."""
    names = cells(here)
    found = [] if names and names == cells(there) else ["cells"]
    for name in ("table.md", "table.png"):
        found += [] if (here / "grid" / name).read_bytes() == (there / "grid" / name).read_bytes() else [name]
    found += [] if rows(here) == rows(there) else ["table.csv"]
    return found + [name for name in names if not same(*(weights(folder, name) for folder in (here, there)))]


def rows(folder: Path) -> list[dict]:
    """Of table.csv."""
    found = csv.DictReader((folder / "grid" / "table.csv").read_text().splitlines())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def weights(folder: Path, cell: str) -> dict[str, torch.Tensor]:
    return tensor_file.load(str(folder / "grid" / cell / "last.pt"))["model"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


if __name__ == "__main__":
    main()
