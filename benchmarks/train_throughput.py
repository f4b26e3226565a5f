"""Compare training steps: float, every method, torch's own quantization-aware training, and Brevitas, interleaved.

    python -m benchmarks.train_throughput                                resnet20, batch 256, fp32
    python -m benchmarks.train_throughput --model mobilenet_v2 --precision bf16 --json out.json
    python -m benchmarks.train_throughput --plain                        our quantizers without compiled kernels

All train the same model on the same images in memory, in the same plain SGD loop; `float` is the unquantized model. A
ratio compares step times burst by burst: median (10th to 90th percentile). Memory is what a step adds to the process at
its peak. torch.ao is FX graph mode with fused moving-average fake-quantizers, which support fp32 only. Brevitas (pip
install brevitas), if installed, has 4-bit weights and activations.
"""

import argparse
import copy
import ctypes
import json
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
import quant
from utils import files, timing
from utils.environment import environment
from utils.table import markdown_table

OURS = {
    f"{method} {bits}/{bits}": {"method": method, "weight_bits": bits, "act_bits": bits}
    for method, bits in (("lsq", 4), ("lsq", 2), ("pact", 4), ("dorefa", 4), ("statassist", 4), ("statassist", 8))
}
PEERS = ("torch.ao 8/8", "Brevitas 4/4")
HEADER = ["", "ms per step", "images/s", "time / float", "MB per step", "MB / float"]
BURST, WARMUP = 2, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--plain", action="store_true", help="do not compile the kernels of our quantizers")
    parser.add_argument("--only", nargs="*", default=[*OURS, *PEERS])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.plain:
        quant.compile_kernels()
    if options.memory_of:
        print(json.dumps(memory_of(stepper(options.memory_of, options))))
        return
    steps = {name: stepper(name, options) for name in ("float", *options.only)}
    steps = {name: step for name, step in steps.items() if step is not None}
    taken = interleaved(steps, options.repeats)
    rows = [row(name, taken, measured_memory(name), options.batch) for name in steps]
    machine = environment()
    print(f"{options.model}, 32 x 32, batch {options.batch}, {options.precision}{', plain' if options.plain else ''};")
    print(
        f"{machine['cpu']} ({' '.join(machine['cpu_flags'])}), torch {machine['torch']}, {machine['threads']} threads\n"
    )
    base = rows[0]["megabytes"]
    print(markdown_table(HEADER, [cells(found, base) for found in rows]))
    if options.json:
        files.write_json(options.json, rows)


def row(name: str, taken: dict[str, list[float]], megabytes: float, batch: int) -> dict:
    ratio = timing.spread([a / b for a, b in zip(taken[name], taken["float"], strict=True)])
    median = statistics.median(taken[name])
    return {
        "name": name,
        "ms": median,
        "images_per_second": 1e3 * batch / median,
        "ratio": [ratio.median, ratio.p10, ratio.p90],
        "megabytes": megabytes,
    }


def cells(found: dict, base: float) -> list[str]:
    ratio = "{:.2f} ({:.2f}-{:.2f})".format(*found["ratio"])
    memory = [f"{found['megabytes']:.0f}", f"{found['megabytes'] / base:.2f}"]
    return [found["name"], f"{found['ms']:.0f}", f"{found['images_per_second']:.0f}", ratio, *memory]


def interleaved(steps: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Milliseconds per step: for each function, one mean per burst."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(WARMUP):
            step()
    for _ in range(repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(BURST):
                step()
            taken[name].append(1e3 * (time.perf_counter() - began) / BURST)
    return taken


def stepper(name: str, options: argparse.Namespace) -> Callable[[], None] | None:
    """The training step of a row; None if its package is not installed or does not support the precision."""
    torch.manual_seed(0)
    form = {"form": "imagenet"} if options.model == "mobilenet_v2" else {}
    plain = models.build(options.model, 10, 32, form).to(memory_format=torch.channels_last).train()
    images = torch.randn(options.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (options.batch,))
    make = {
        "float": lambda: plain,
        "torch.ao 8/8": lambda: None if options.precision == "bf16" else torch_ao(plain, images),
        "Brevitas 4/4": lambda: brevitas(plain),
    }
    model = make.get(name, lambda: ours(plain, OURS.get(name)))()
    return None if model is None else step_of(model, images, labels, options.precision == "bf16")


def step_of(model: nn.Module, images: Tensor, labels: Tensor, bf16: bool) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ours(plain: nn.Module, keys: dict) -> nn.Module:
    return quant.prepare(copy.deepcopy(plain), quant.resolve(quant.parse(**keys)))


def torch_ao(plain: nn.Module, images: Tensor) -> nn.Module:
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mapping = get_default_qat_qconfig_mapping("x86")
        return prepare_qat_fx(copy.deepcopy(plain), mapping, (images,)).to(memory_format=torch.channels_last)


def brevitas(plain: nn.Module) -> nn.Module | None:
    """4-bit weights and inputs in every convolution and linear layer but the first and last; ReLUs write 4 bits."""
    try:
        import brevitas.nn as qnn
    except ImportError:
        return None
    model = quant.trace(copy.deepcopy(plain))
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for name in names[1:-1]:
        old = model.get_submodule(name)
        new = qnn.QuantConv2d(
            old.in_channels,
            old.out_channels,
            old.kernel_size,
            old.stride,
            old.padding,
            old.dilation,
            old.groups,
            bias=old.bias is not None,
            weight_bit_width=4,
        )
        new.weight.data.copy_(old.weight.data)
        model.set_submodule(name, new)
    for i, node in enumerate(list(model.graph.nodes)):
        acts = node.target in (F.relu, torch.relu) or (
            node.op == "call_module" and isinstance(model.get_submodule(node.target), nn.ReLU | nn.ReLU6)
        )
        if acts:
            model.add_submodule(f"quant_relu_{i}", qnn.QuantReLU(bit_width=4))
            node.op, node.target, node.args, node.kwargs = "call_module", f"quant_relu_{i}", node.args[:1], {}
    model.recompile()
    return model.to(memory_format=torch.channels_last).train()


def measured_memory(name: str) -> float:
    """`memory_of` a step, measured in a separate process."""
    command = [sys.executable, "-m", "benchmarks.train_throughput", *sys.argv[1:], "--memory-of", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def memory_of(step: Callable[[], None]) -> float:
    """The peak memory in MB that a step adds to this process (Linux only)."""
    for _ in range(WARMUP):
        step()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    step()
    return status("VmHWM") - before


def status(key: str) -> float:
    """A value of /proc/self/status, in MB."""
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3


if __name__ == "__main__":
    main()
