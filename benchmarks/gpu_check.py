"""Check on a machine with a GPU all that cannot be checked without one, in less than eight minutes.

    python -m benchmarks.gpu_check                        the accelerator, or the CPU where there is none
    python -m benchmarks.gpu_check --device cuda:1 --json found.json
    python -m benchmarks.gpu_check --only steps syncs

steps    milliseconds of a training step as a multiple of float's, in fp32 and bf16, with compiled kernels and without
syncs    how often a training step waits for the device or copies to it, by the profiler
images   images a second of training batches, from memory and from JPEG files
exact    whether a quantized net evaluates on the device as on the CPU, to the bit
resume   whether a run that is stopped and continued ends in the same bits
two      whether two processes train, on two GPUs or the CPU, and how far the weights are from one process's
"""

import argparse
import copy
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import data
import models
import quant
from benchmarks.train_throughput import OURS, interleaved, ours, step_of
from utils import device, files
from utils.environment import environment
from utils.runs import tensor_file
from utils.table import markdown_table

ROOT = Path(__file__).parent.parent
NETS = ("resnet20", "mobilenet_v2")
METHODS = {"float": None, **{name: OURS[name] for name in ("lsq 4/4", "pact 4/4", "dorefa 4/4", "statassist 8/8")}}
WAITS = ("Synchronize", "Memcpy DtoH", "Memcpy HtoD")
"""Parts of the names of what a profiler records when the host waits for a GPU, or copies from or to it."""
RUN = ("data.name=digits", "data.limit=512", "run.epochs=3", "optim.name=qsgd", "run.deterministic=true")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[*CHECKS], choices=[*CHECKS])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    where, found = device.find(asked.device), dict[str, Any](environment=environment())
    device.use_tf32(False, where)
    print(json.dumps(found["environment"]))
    for name in asked.only:
        began = time.perf_counter()
        found[name] = CHECKS[name](where, asked)
        print(f"\n{name}, {where}, {time.perf_counter() - began:.0f} s\n\n{shown(found[name])}", flush=True)
    if asked.json:
        files.write_json(asked.json, found)


def shown(rows: list[dict[str, Any]]) -> str:
    return markdown_table([*rows[0]], [[str(value) for value in row.values()] for row in rows])


def steps(where: torch.device, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Of all, or on the CPU of the first net, since there they take minutes."""
    nets = NETS[:1] if where.type == "cpu" else NETS
    cells = [(net, bf16, compiled) for net in nets for bf16 in (False, True) for compiled in (False, True)]
    return [row for cell in cells for row in _steps(where, asked, *cell)]


def _steps(where: torch.device, asked: argparse.Namespace, net: str, bf16: bool, compiled: bool) -> list[dict]:
    (quant.compile_kernels if compiled else lambda _: quant.interpret_kernels())(where)
    made = {name: step(net, keys, where, asked.batch, bf16) for name, keys in METHODS.items()}
    taken = interleaved({name: waited(run, where) for name, run in made.items()}, asked.repeats)
    quant.interpret_kernels()
    form = {"net": net, "precision": "bf16" if bf16 else "fp32", "kernels": "compiled" if compiled else "plain"}
    return [form | {"method": name} | ratio(taken[name], taken["float"]) for name in made]


def ratio(taken: list[float], of_float: list[float]) -> dict[str, str]:
    ratios = [a / b for a, b in zip(taken, of_float, strict=True)]
    return {"ms": f"{statistics.median(taken):.1f}", "of float": f"{statistics.median(ratios):.2f}"}


def step(net: str, keys: dict | None, where: torch.device, batch: int, bf16: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    plain = models.build(net, 10, 32, {}).to(memory_format=torch.channels_last).train()
    model = (plain if keys is None else ours(plain, keys)).to(where)
    images = torch.randn(batch, 3, 32, 32).to(where).contiguous(memory_format=torch.channels_last)
    return step_of(model, images, torch.randint(0, 10, (batch,)).to(where), bf16)


def waited(run: Callable[[], None], where: torch.device) -> Callable[[], None]:
    """run, and then the device's end of it."""

    def both() -> None:
        run()
        if where.type != "cpu":
            torch.accelerator.synchronize(where)

    return both


def syncs(where: torch.device, asked: argparse.Namespace) -> list[dict[str, Any]]:
    made = {name: step("resnet20", keys, where, asked.batch, False) for name, keys in METHODS.items()}
    return [{"method": name} | waits_of(run, where) for name, run in made.items()]


def waits_of(run: Callable[[], None], where: torch.device) -> dict[str, Any]:
    """Of a step after some others. (On the CPU: benchmarks/step_counts.py.)"""
    if where.type != "cuda":
        return {"waits": "no GPU", "kernels": "no GPU"}
    for _ in range(3):
        run()
    torch.accelerator.synchronize(where)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        run()
    names = [event.name for event in recorded.events()]
    waits = sum(any(part in name for part in WAITS) for name in names)
    return {"waits": waits, "kernels": sum("LaunchKernel" in name for name in names)}


def images(where: torch.device, asked: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        for i in range(256):
            path = Path(folder, "train" if i < 224 else "val", str(i % 2), f"{i}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = numpy.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
            Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jpegs = data.DATASETS["imagenet"].load(224, None, root=folder, workers=workers)
        small = data.DATASETS["digits"].load(32, None)
        kinds = {"digits in memory, 32 x 32": (small, 32), "JPEG of 500 x 375, 224 x 224": (jpegs, 224)}
        return [{"images": name} | speed(*kind, where, asked.batch) for name, kind in kinds.items()]


def speed(dataset: data.Dataset, size: int, where: torch.device, batch: int) -> dict[str, str]:
    draw = data.Draw(seed=0, augment="crop", flip=True)
    batches = data.batches(dataset.training, min(batch, 64), dataset.mean, dataset.std, size, draw, where)
    taken = []
    for epoch in range(4):
        began, count = time.perf_counter(), 0
        for some, _ in batches.epoch(epoch):
            count += len(some)
        if where.type != "cpu":
            torch.accelerator.synchronize(where)
        taken.append(count / (time.perf_counter() - began))
    return {"images/s": f"{statistics.median(taken[1:]):.0f}"}


def exact(where: torch.device, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Also with TF32 on, which integers must not notice."""
    nets, found = ("resnet20", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5"), []
    for tf32 in (False, True) if where.type == "cuda" else (False,):
        device.use_tf32(tf32, where)
        found += [{"net": net, "tf32": tf32} | compared(net, where) for net in nets]
    device.use_tf32(False, where)
    return found


@torch.no_grad()
def compared(net: str, where: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    spec = quant.resolve(quant.parse(method="lsq", weight_bits=8, act_bits=8))
    model = quant.prepare(models.build(net, 10, 32, {}), spec).train()
    batch = torch.randn(64, 3, 32, 32)
    for _ in range(3):
        model(batch)
    host = model.eval()(batch)
    there = copy.deepcopy(model).to(where)(batch.to(where)).cpu()
    return {"logits": host.numel(), "differ": int((host != there).sum())}


def resume(where: torch.device, asked: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        train(where, folder, "whole").wait()
        stopped = train(where, folder, "stopped")
        while stopped.poll() is None and not Path(folder, "stopped", "last.pt").exists():
            time.sleep(0.01)
        stopped.send_signal(signal.SIGTERM)
        code, again = stopped.wait(), train(where, folder, "stopped").wait()
        return [{"stopped with": code, "continued with": again} | difference(folder, "whole", "stopped")]


def two(where: torch.device, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """On the CPU where there are fewer than two accelerators."""
    if where.type != "cpu" and torch.accelerator.device_count() < 2:
        where = device.CPU
    kind = torch.device(where.type)  # each process has its own
    with tempfile.TemporaryDirectory() as folder:
        codes = [train(kind, folder, "one").wait(), train(kind, folder, "both", processes=2).wait()]
        return [{"device": kind, "ended with": codes} | difference(folder, "one", "both")]


def train(where: torch.device, folder: str, name: str, processes: int = 1) -> subprocess.Popen:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    keys = [*RUN, f"run.device={where}", f"run.dir={folder}", f"run.name={name}"]
    command = [sys.executable, *launch, "train.py", *keys]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def difference(folder: str, one: str, other: str) -> dict[str, Any]:
    """Of the tensors of two runs' last checkpoints: how many differ, and by how much at most."""
    pair = [Path(folder, name, "last.pt") for name in (one, other)]
    if not all(path.exists() for path in pair):
        return {"tensors": "no checkpoint"}
    states: list[dict[str, Tensor]] = [tensor_file.load(str(path))["model"] for path in pair]
    gaps = [float((states[0][key].double() - states[1][key].double()).abs().max()) for key in states[0]]
    return {"tensors": len(gaps), "differ": sum(gap > 0 for gap in gaps), "by at most": f"{max(gaps):.2g}"}


CHECKS = {"steps": steps, "syncs": syncs, "images": images, "exact": exact, "resume": resume, "two": two}


if __name__ == "__main__":
    main()
