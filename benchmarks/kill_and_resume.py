"""Kill training processes with SIGKILL at random moments and check that resumed runs give the same result.

    python -m benchmarks.kill_and_resume --kills 5 [--json FILE]

For each method, one run is not interrupted, and another is killed several times and started again by the same command.
Half of the kills wait until a checkpoint is being written. At the end, all tensors of last.pt and best.pt, and the
accuracies in summary.json, must be equal bit for bit.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from utils import files
from utils.table import markdown_table

METHODS = {
    "lsq 4/4": ["quant.method=lsq", "quant.weight_bits=4", "quant.act_bits=4"],
    "pact 4/4": ["quant.method=pact", "quant.weight_bits=4", "quant.act_bits=4"],
    "dorefa 4/4/6": ["quant.method=dorefa", "quant.weight_bits=4", "quant.act_bits=4", "quant.grad_bits=6"],
    "statassist 8/8, qsgd": ["quant.method=statassist", "optim.name=qsgd"],
}
COMMON = ["data.image_size=16", "data.batch_size=64", "data.val_fraction=0.2", "run.epochs=6"]
COMMON += ["run.checkpoint_minutes=0.0001", 'run.engines=["reference"]']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="for each method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    moments, rows = random.Random(options.seed), []
    for name, keys in METHODS.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"method": name} | compared(keys, Path(folder), options.kills, moments))
            print(rows[-1], file=sys.stderr, flush=True)
    header = list(rows[0])
    print(markdown_table(header, [[str(row[key]) for key in header] for row in rows]))
    if options.json:
        files.write_json(Path(options.json), rows)


def compared(keys: list[str], folder: Path, kills: int, moments: random.Random) -> dict:
    """The row of one method: kills, kills while a checkpoint was being written, and the tensors that differ."""
    uninterrupted, killed = folder / "uninterrupted", folder / "killed"
    began = time.monotonic()
    finish(uninterrupted, keys)
    seconds, saving = time.monotonic() - began, 0
    for i in range(kills):
        saving += kill(killed, keys, moments, in_a_save=i % 2 == 1)
    finish(killed, keys)
    count, wrong = 0, []
    for file in ("last.pt", "best.pt"):
        compared_here, wrong_here = different(uninterrupted / "run" / file, killed / "run" / file)
        count, wrong = count + compared_here, wrong + wrong_here
    accuracy = [
        json.loads((where / "run" / "summary.json").read_text())["accuracy"] for where in (uninterrupted, killed)
    ]
    wrong += [] if accuracy[0] == accuracy[1] else ["accuracy"]
    shutil.rmtree(killed)
    return {
        "seconds uninterrupted": round(seconds),
        "kills": kills,
        "in a save": saving,
        "tensors": count,
        "differs": wrong or "nothing",
    }


def command(folder: Path, keys: list[str]) -> list[str]:
    return [sys.executable, "train.py", *COMMON, *keys, f"run.dir={folder}", "run.name=run"]


def finish(folder: Path, keys: list[str]) -> None:
    subprocess.run(command(folder, keys), check=True, stdout=subprocess.DEVNULL, env=os.environ)


def kill(folder: Path, keys: list[str], moments: random.Random, in_a_save: bool) -> bool:
    """Start the run, wait until it makes progress, and kill it. Returns whether a checkpoint was being written."""
    run, before = folder / "run", log_lines(folder / "run")
    process = subprocess.Popen(command(folder, keys), stdout=subprocess.DEVNULL)
    while log_lines(run) == before and process.poll() is None:  # until this process writes its first line
        time.sleep(0.01)
    time.sleep(moments.uniform(0.2, 1.2))
    while in_a_save and not [*run.glob(".last.*.pt")] and process.poll() is None:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError("the run ended before it was killed: give it more epochs")
    return bool([*run.glob(".last.*.pt")])


def log_lines(run: Path) -> int:
    log = run / "run.log"
    return len(log.read_text().splitlines()) if log.is_file() else 0


def different(one: Path, other: Path) -> tuple[int, list[str]]:
    """(number of tensors in two checkpoints, names of those that are not equal bit for bit)."""
    first, second = (flat(torch.load(path, weights_only=True)) for path in (one, other))
    names = {**first, **second}
    wrong = [n for n in names if n not in first or n not in second or not torch.equal(first[n], second[n])]
    return len(names), [f"{one.name}{name}" for name in wrong]


def flat(value, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors in nested dicts and lists, by their path."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path: tensor for key, item in items for path, tensor in flat(item, f"{name}.{key}").items()}


if __name__ == "__main__":
    main()
