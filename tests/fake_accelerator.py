"""Train on an accelerator that is not there: torch's tensors without values, on a device that torch takes for one.

Whatever needs a number of the device raises. The device is registered for the whole process, hence a script: run it as
`python -m tests.fake_accelerator`. It prints a line for each combination of options and optimizer that did its steps:
numbers read, tensors copied, tensors made, and which operators did that.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration

from benchmarks.step_counts import OPTIONS, Counts, Operators, Repeated, nets, rate_of, trainer
from utils.console import quiet
from utils.runs.checkpointing import Position
from utils.training.optim import OPTIMIZERS

NAME, STEPS, SIZE = "fakegpu", 2, 32
DEVICE = f"{NAME}:0"
COMBINATIONS = [
    *((name, "qsgd", "fast_cnn") for name in OPTIONS),
    *(("lsq", optimizer, "fast_cnn") for optimizer in OPTIMIZERS if optimizer != "qsgd"),
    ("statassist", "qsgd", "mobilenet_v3_small"),
]


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class _Ended(Exception):
    """After the last step, before numbers are read."""


def moved(module: nn.Module) -> nn.Module:
    """The module, its Parameters and buffers without values on the device; those that were one stay one."""
    made: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = made.setdefault(id(p), nn.Parameter(torch.empty_like(p, device=DEVICE)))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device=DEVICE)
    return module


def train(keys: dict, optimizer: str, model: str) -> Counts:
    """Train a few steps; the counts of the last."""
    counts, noise = Counts(), SimpleNamespace(own=None, shared=None, at=lambda *_: None, seed_of_first=lambda *_: 0)
    (net, teacher), lam = nets(model, SIZE, keys), rate_of(keys)
    with FakeTensorMode(allow_non_fake_inputs=True), TemporaryDirectory() as folder:
        images = torch.randn(4, 3, SIZE, SIZE, device=DEVICE).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, 10, (4,), device=DEVICE)
        mode = Operators(counts, lambda x: x.device.type == "cpu")

        def between(step: int) -> None:
            if step == STEPS:
                mode.__enter__()
            if step == STEPS + 1:
                mode.__exit__(None, None, None)
                raise _Ended

        batches = Repeated(images, labels, 100, between)
        loop = trainer(moved(net), moved(teacher), lam, optimizer, batches, Path(folder), noise, torch.device(DEVICE))
        try:
            loop._train(0, Position(0))
        except _Ended:
            return counts
        raise AssertionError("the steps were not done")


def main() -> None:
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    quiet()
    for name, optimizer, model in COMBINATIONS:
        found = train(OPTIONS[name], optimizer, model)
        print(f"{name}, {optimizer}, {model}: {found.reads} {found.copies} {found.made}", *found.where)


if __name__ == "__main__":
    main()
