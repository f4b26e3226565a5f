"""Count what a training step asks of its device: numbers read, copies from or to the host, tensors made from numbers.

    python -m benchmarks.step_counts                                 every method, two nets, three optimizers
    python -m benchmarks.step_counts --models resnet20 --options     each option by itself

On an accelerator each of them waits for the device or copies to it. The step is that of the training loop with all
that may take part: a teacher, the average of the weights, oscillation dampening, clipped gradients. It is counted on
the CPU, where the code is made to treat numbers as it does on an accelerator. `calls` are torch's operators in the
step, `of float` their multiple of those of the unquantized model. Loss and scores are read every 32 steps: `deferred`
is how many such reads there were, and in how many steps.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import models
import quant
from quant.core import numbers
from quant.methods import gradboost
from utils.console import quiet
from utils.device import STEPS_BETWEEN_READS
from utils.distributed import Processes
from utils.runs.checkpointing import Position
from utils.runs.log import RunLog
from utils.seed import Noise
from utils.table import markdown_table
from utils.training import average, distill, optim
from utils.training.trainer import Trainer

OPTIONS: dict[str, dict[str, Any]] = {
    "float": {"method": "float"},
    **{
        name: {"method": name, "weight_bits": 4, "act_bits": 4}
        for name in quant.METHODS
        if name not in ("float", "ptq")
    },
    "pact, dorefa's weights": {"method": "pact", "weight_bits": 4, "act_bits": 4, "weights": "dorefa"},
    "dorefa, gradients": {"method": "dorefa", "weight_bits": 4, "act_bits": 4, "grad_bits": 6},
    "lsq, an offset": {"method": "lsq", "weight_bits": 4, "act_bits": 4, "offset": "learned"},
    "lsq, ewgs": {"method": "lsq", "weight_bits": 2, "act_bits": 2, "rounding_gradient": "ewgs"},
    "dorefa, fourier": {"method": "dorefa", "weight_bits": 2, "act_bits": 2, "rounding_gradient": "fourier"},
    "pact, transition rate": {"method": "pact", "weight_bits": 2, "act_bits": 2, "transition_rate": True},
    "lsq, a step a layer": {"method": "lsq", "weight_bits": 2, "act_bits": 2, "granularity": "per_tensor"},
}
HEADER = ["", "model", "optimizer", "reads", "copies", "made", "calls", "of float", "deferred"]
READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
}
MADE = {torch.ops.aten.lift_fresh.default}
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
WARMUP = 2


@dataclass
class Counts:
    """reads, copies, made: see above. deferred: tensors read as lists."""

    reads: int = 0
    copies: int = 0
    made: int = 0
    calls: int = 0
    deferred: int = 0
    where: list[str] = field(default_factory=list, compare=False)


class Operators(TorchDispatchMode):
    """Counts operators. is_free(x): whether reading x waits for nothing."""

    def __init__(self, counts: Counts, is_free: Callable[[Tensor], bool]):
        super().__init__()
        self.counts, self.is_free = counts, is_free

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.counts.calls += 1
        if func in READS and not self.is_free(args[0]):
            self._note("reads", func)
        elif func in MADE:
            self._note("made", func)
        found = func(*args, **(kwargs or {}))
        if func in COPIES and found.device.type != next(_devices(args[::-1])):
            self._note("copies", func)
        return found

    def _note(self, kind: str, func: Any) -> None:
        setattr(self.counts, kind, getattr(self.counts, kind) + 1)
        self.counts.where.append(f"{kind}: {func}")


class Lists(TorchFunctionMode):
    """Counts Tensor.tolist, which is no operator on the CPU."""

    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.counts.deferred += func is torch.Tensor.tolist
        return func(*args, **(kwargs or {}))


def _devices(args: tuple) -> Iterator[str]:
    return (arg.device.type for arg in args if isinstance(arg, Tensor))


@dataclass
class Repeated:
    """Batches of the training loop: the same images, `steps` times. between(step) is called before each."""

    images: Tensor
    labels: Tensor
    steps: int
    between: Any = lambda step: None

    @property
    def batch_size(self) -> int:
        return max(1, len(self.images) // self.steps)

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(first, self.steps):
            self.between(step)
            yield self.images, self.labels
        self.between(self.steps)


class _Unsaved:
    """In place of a CheckpointSaver."""

    def is_due(self) -> bool:
        return False

    def save(self, *_: Any) -> str:
        return ""

    def save_unsaved(self) -> None:
        pass


def nets(name: str, image_size: int, keys: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """A net as the quant section `keys` says, to train, and its float net, the teacher."""
    torch.manual_seed(0)
    net, spec = models.build(name, 10, image_size, {}), quant.resolve(quant.parse(**keys))
    net = net.to(memory_format=torch.channels_last).train()
    teacher = copy.deepcopy(net).eval()
    return (net if spec.method == "float" else quant.prepare(net, spec)), teacher


def rate_of(keys: dict[str, Any]) -> float:
    return quant.transition_rate(quant.resolve(quant.parse(**keys)))


def trainer(
    model: nn.Module,
    teacher: nn.Module,
    lam: float,
    optimizer: str,
    batches: Any,
    folder: Path,
    noise: Any,
    device: torch.device,
) -> Trainer:
    """The training loop of a net with everything that may take part in a step. lam: of transition rate scheduling."""
    row = optim.OPTIMIZERS[optimizer]
    held = row.make([{"params": [*model.parameters()]}], 0.01, row.options())
    if optimizer in optim.BOOSTED:
        gradboost.GradBoost(held, **gradboost.Options().model_dump(), generator=noise.shared)
    quant.draw_from(model, noise.own)
    gradboost.end_warm_up(held)
    made = Trainer(
        model=model,
        optimizer=held,
        train_batches=batches,
        val_batches=None,
        rate=lambda done: 0.01,
        loss_of=distill.loss(0.1, teacher, 0.5, 2.0),
        clip_norm=1.0,
        bf16=False,
        epochs=1,
        quantize_from=0,
        quantize=lambda model: model,
        method="",
        average=average.Average(held, 0.999),
        reestimate_batch_norm=lambda model: None,
        noise=noise,
        processes=Processes(0, 1, device),
        log=RunLog(folder, 1),
        saver=_Unsaved(),  # type: ignore[arg-type]
        read_every=STEPS_BETWEEN_READS,
    )
    if lam:
        quant.fix_steps(model)
        quant.TransitionRate(held, model, lam, 0.01, lambda: 1.0)
    if quant.is_prepared(model):
        quant.Dampening(held, model, 0.1, lambda: made.progress)
    return made


def count(keys: dict[str, Any], model: str, optimizer: str, steps: int = 2, image_size: int = 32) -> Counts:
    """The counts of a step of training, the last of `steps` after a warm-up; deferred: of all `steps`."""
    net, teacher = nets(model, image_size, keys)
    images = torch.randn(4, 3, image_size, image_size).contiguous(memory_format=torch.channels_last)
    found, device, on = Counts(), torch.device("cpu"), []

    def between(step: int) -> None:
        for mode in on:
            mode.__exit__(None, None, None)
        on.clear()
        if WARMUP <= step < WARMUP + steps:
            found.reads = found.copies = found.made = found.calls = 0
            on.extend([Operators(found, is_step_number), Lists(found)])
            for mode in on:
                mode.__enter__()

    def is_step_number(x: Tensor) -> bool:
        """Whether x is one of Adam's step numbers, which stay on the host."""
        return any(state.get("step") is x for state in loop.optimizer.state.values())

    batches = Repeated(images, torch.arange(4), WARMUP + steps, between)
    is_host, numbers.is_host = numbers.is_host, lambda x: False
    try:
        with TemporaryDirectory() as folder:
            loop = trainer(net, teacher, rate_of(keys), optimizer, batches, Path(folder), Noise(0, 0, device), device)
            loop._train(0, Position(0))
    finally:
        numbers.is_host = is_host
    return found


def row(name: str, keys: dict[str, Any], model: str, optimizer: str, steps: int) -> list[str]:
    found, plain = count(keys, model, optimizer, steps), count(OPTIONS["float"], model, optimizer)
    numbers_found = [str(n) for n in (found.reads, found.copies, found.made, found.calls)]
    return [name, model, optimizer, *numbers_found, f"{found.calls / plain.calls:.1f}", f"{found.deferred} in {steps}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["resnet20", "mobilenet_v3_small"])
    parser.add_argument("--optimizers", nargs="*", default=["qsgd", "sgd", "adamw"])
    parser.add_argument("--methods", nargs="*", default=["float", "lsq", "pact", "dorefa", "statassist"])
    parser.add_argument(
        "--steps", type=int, default=STEPS_BETWEEN_READS - WARMUP, help="counted, of which the last is shown"
    )
    parser.add_argument("--options", action="store_true", help="all rows of OPTIONS")
    asked = parser.parse_args()
    quiet()
    names = OPTIONS if asked.options else asked.methods
    cells = [(name, model, optimizer) for model in asked.models for optimizer in asked.optimizers for name in names]
    print(markdown_table(HEADER, [row(name, OPTIONS[name], model, by, asked.steps) for name, model, by in cells]))


if __name__ == "__main__":
    main()
