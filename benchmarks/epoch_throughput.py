"""Compare whole epochs of train.py with the bare training step on tensors in memory, interleaved in one process.

    python -m benchmarks.epoch_throughput                                resnet20 on CIFAR-10-JPEG, batch 256, fp32
    python -m benchmarks.epoch_throughput --precision bf16 --only float "lsq 4/4" --repeats 5

An epoch is one of train.py, as timed in its metrics.csv: images are read from memory, augmented, normalized, trained on
and scored. The bare step is that of benchmarks/train_throughput.py: the same model on images that never change. The
ratio compares an epoch with the mean of the bare steps just before and just after it.
"""

import argparse
import csv
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import quant
from benchmarks.train_throughput import OURS, stepper
from experiment import training
from utils import memory, timing
from utils.environment import environment
from utils.table import markdown_table

SETTING = "setting/cifar10_jpeg_float.json"
HEADER = ["", "epoch, images/s", "bare step, images/s", "epoch over step"]
WARMUP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["float", "lsq 4/4"], choices=["float", *OURS])
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50, help="bare steps between two epochs")
    options = parser.parse_args()
    options.model, options.batch = "resnet20", 256
    memory.keep_freed()
    rows = [cells(name, *interleaved(name, options)) for name in options.only]
    machine = environment()
    print(f"\n{options.model}, CIFAR-10-JPEG, batch {options.batch}, {options.precision}; {machine['cpu']}, ", end="")
    print(f"torch {machine['torch']}, {machine['threads']} threads\n\n{markdown_table(HEADER, rows)}")


def interleaved(name: str, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Images per second of each of `repeats` epochs, and of the bare steps before, between and after them."""
    quant.compile_kernels()
    step = stepper(name, options)
    with tempfile.TemporaryDirectory() as folder:
        epoch(name, options.precision, folder, "data.limit=2560")  # reads the images, and compiles
        epochs, bare = [], [burst(step, options)]
        for _ in range(options.repeats):
            epochs.append(epoch(name, options.precision, folder))
            bare.append(burst(step, options))
    return epochs, bare


def epoch(name: str, precision: str, folder: str, *overrides: str) -> float:
    keys = [f"quant.{key}={value}" for key, value in OURS.get(name, {}).items()]
    run = [f"run.dir={folder}", "run.resume=never", "run.epochs=1", f"run.precision={precision}", 'run.engines=["x86"]']
    training.main(
        ["-c", SETTING, "optim.lr=0.01", "optim.warmup_epochs=0", "run.compile=always", *keys, *run, *overrides]
    )
    with open(Path(folder) / Path(SETTING).stem / "metrics.csv") as file:
        return float(list(csv.DictReader(file))[-1]["images_per_second"])


def burst(step, options: argparse.Namespace) -> float:
    for _ in range(WARMUP):
        step()
    began = time.perf_counter()
    for _ in range(options.steps):
        step()
    return options.batch * options.steps / (time.perf_counter() - began)


def cells(name: str, epochs: list[float], bare: list[float]) -> list[str]:
    ratios = [
        found / ((before + after) / 2) for found, (before, after) in zip(epochs, itertools.pairwise(bare), strict=True)
    ]
    ratio = timing.spread(ratios)
    medians = [f"{statistics.median(values):.0f}" for values in (epochs, bare)]
    return [name, *medians, f"{ratio.median:.3f} ({ratio.p10:.3f}-{ratio.p90:.3f})"]


if __name__ == "__main__":
    main()
