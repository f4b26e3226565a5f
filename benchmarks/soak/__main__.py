"""Disturb runs of train.py and evaluate.py at random: killed, no disk space, other images, damaged checkpoints.

    python -m benchmarks.soak --count 200 [--seed N] [--jobs 2] [--json FILE]

A trial draws a kind of run (benchmarks/soak/runs.py) and a fault (benchmarks/soak/faults.py) from its number, disturbs
the run and starts the same command again. It has to end with the bits of the undisturbed run (all tensors of last.pt
and best.pt, summary.json, the files of an export), or with exit code 2 and one line that names the cause, after whose
cure it ends with those bits. Trial 17 alone: --seed 17 --count 1. The exit code is 1 if there was anything else.

A full disk is a small one that is mounted, for which it takes root; without it, that fault is left out.
"""

import argparse
import functools
import importlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.soak import runs
from benchmarks.soak.faults import FAULTS, Fault
from benchmarks.soak.processes import Violation
from benchmarks.soak.trial import Trial
from utils import files
from utils.table import markdown_table

IMPORTED_LATE = ("sklearn.datasets", "matplotlib.pyplot", "onnx", "onnxscript", "torch.export", "torch.utils.data")
"""What runs import when they need it: imported once, before the processes of all trials fork."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="number of the first trial")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS), help="only these")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    os.environ.setdefault("MPLBACKEND", "Agg")
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    faults = {name: FAULTS[name] for name in options.faults if name != "full disk" or os.geteuid() == 0}
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as base:
        runs.make_sources(Path(base) / "sources")
        each = functools.partial(tried, Path(base), faults)
        found = shown(in_processes(each, range(options.seed, options.seed + options.count), options.jobs))
    print(summary(found))
    if options.json:
        files.write_json(Path(options.json), found)
    sys.exit(any(one["violation"] for one in found))


def in_processes(each, numbers: range, jobs: int) -> Iterable[dict]:
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        yield from pool.map(each, numbers)


def tried(base: Path, faults: dict[str, Fault], number: int) -> dict:
    """The row of one trial. A folder with a violation is kept beside the others."""
    choose = random.Random(number)
    fault = choose.choices(list(faults), [fault.share for fault in faults.values()])[0]
    kind = choose.choice(faults[fault].kinds)
    trial = Trial(kind, base / f"trial {number} é", base / "sources", choose)
    began, violation, ending = time.monotonic(), "", "violation"
    try:
        ending = faults[fault].disturb(trial)
    except Violation as error:
        violation = str(error)
    except Exception:
        violation = traceback.format_exc()
    if violation:
        shutil.copytree(trial.folder, Path(tempfile.gettempdir()) / f"soak-trial-{number}", dirs_exist_ok=True)
    trial.end()
    seconds = round(time.monotonic() - began, 1)
    return {"trial": number, "kind": kind, "fault": fault, "ending": ending, "seconds": seconds} | {
        "notes": trial.notes,
        "violation": violation,
    }


def shown(rows: Iterable[dict]) -> list[dict]:
    """The rows as a list; each is printed when it is there."""
    found = []
    for row in rows:
        found.append(row)
        head = f"{row['trial']:5}  {row['kind']}, {row['fault']}: {row['ending']}, {row['seconds']} s"
        print("\n       ".join([head, *filter(None, [*row["notes"], row["violation"]])]), flush=True)
    return found


def summary(rows: list[dict]) -> str:
    """A table of how often each fault had each ending, and the violations."""
    endings = sorted({row["ending"] for row in rows})
    counts = Counter((row["fault"], row["ending"]) for row in rows)
    faults = [name for name in FAULTS if any(row["fault"] == name for row in rows)]
    lines = [[name, *(str(counts[name, ending]) for ending in endings)] for name in faults]
    total = ["all", *(str(sum(row["ending"] == ending for row in rows)) for ending in endings)]
    table = markdown_table(["fault", *endings], [*lines, total])
    return "\n".join(["", table, *(f"trial {row['trial']}: {row['violation']}" for row in rows if row["violation"])])


if __name__ == "__main__":
    main()
