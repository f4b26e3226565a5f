"""Optimizers by name, what decays in them, and the check that each trainable parameter is in one exactly once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import nn

from utils.errors import UserError
from utils.sections import Section, part
from utils.training.schedule import MILESTONES

MILESTONES_OF_STEP: dict[str, Any] = {
    "if": {"properties": {"schedule": {"const": "step"}}, "required": ["schedule"]},
    "else": {"properties": {"milestones": {"type": "null"}}},
}
"""JSON Schema: only schedule step reads milestones, as `resolve` says of a setting."""


class OptimSettings(Section):
    """The optim section of a setting, without an optimizer's own options."""

    model_config = ConfigDict(json_schema_extra=MILESTONES_OF_STEP)

    name: str = "sgd"
    """The optimizer: a row of utils.training.optim.OPTIMIZERS."""
    lr: float = Field(0.1, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 (sgd, rmsprop, adam) or decoupled (adamw) decay of the parameters that `decay` names."""
    decay: Literal["weights", "all", "statassist"] = "weights"
    """Who decays: a row of utils.training.optim.DECAYS. What quantizers learn has its own decay."""
    learned_lr: float = Field(1.0, gt=0)
    """Learning rate of what quantizers learn (LSQ's steps, PACT's clips), as a share of lr."""
    schedule: Literal["cosine", "step", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up: a row of utils.training.schedule.SCHEDULES."""
    warmup_epochs: float = Field(1.0, ge=0)
    """Epochs of linear warm-up from 0; the rate is set at every step."""
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] | None = None
    """Schedule step: shares of what follows the warm-up, after which the rate is divided by ten; null: 0.5 and 0.75."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread over all classes."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay, 0.999, say, of the average of the weights over the steps, which the run ends with; 0: the last weights."""
    clip_norm: float | None = Field(None, gt=0)
    """Scale the gradients down to this norm of all together where they exceed it; null: never."""


class NoOptions(Section):
    """An optimizer without options of its own."""


class Momentum(Section):
    momentum: float = Field(0.9, ge=0, lt=1)
    """Share of the last step that the next one keeps."""


class Nesterov(Momentum):
    nesterov: bool = True
    """Nesterov momentum."""


@dataclass(frozen=True)
class Row:
    """An optimizer: (parameter groups, learning rate, its options) -> torch's, and which options it has."""

    make: Callable[[list[dict], float, Any], torch.optim.Optimizer]
    options: type[Section]


def _sgd(groups: list[dict], lr: float, own: Nesterov) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr, momentum=own.momentum, nesterov=own.nesterov and own.momentum > 0)


def _rmsprop(groups: list[dict], lr: float, own: Momentum) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, lr=lr, momentum=own.momentum, alpha=0.9)


PLAIN = {
    "sgd": Row(_sgd, Nesterov),
    "rmsprop": Row(_rmsprop, Momentum),
    "adam": Row(lambda groups, lr, own: torch.optim.Adam(groups, lr=lr), NoOptions),
    "adamw": Row(lambda groups, lr, own: torch.optim.AdamW(groups, lr=lr), NoOptions),
}
BOOSTED = {f"q{name}": row for name, row in PLAIN.items()}
"""The same optimizers, to which quant/methods/gradboost.py is attached."""
OPTIMIZERS = PLAIN | BOOSTED

DECAYS = {
    "weights": lambda p: float(p.ndim > 1),
    "all": lambda p: 1.0,
    "statassist": lambda p: (0.0 if p.shape[1] == 1 else 1.0) if p.ndim == 4 else 0.01,
}
"""The share of optim.weight_decay that a parameter gets. weights: convolution and linear weights, none else; all: every
one; statassist: the reference's rule, none for depthwise weights, a hundredth for linear weights, biases and norms."""


def resolve(spec: OptimSettings) -> OptimSettings:
    """The section with the schedule's defaults filled in. Raises UserError for keys that the schedule does not read."""
    if spec.schedule == "step":
        return spec if spec.milestones is not None else spec.model_copy(update={"milestones": [*MILESTONES]})
    if spec.milestones is not None:
        raise UserError(f"optim.milestones is read by schedule step; optim.schedule is {spec.schedule}")
    return spec


def build(spec: OptimSettings, model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer with a group for each share of the weight decay. Those of BOOSTED come without their boost."""
    groups: dict[float, list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            groups.setdefault(DECAYS[spec.decay](p), []).append(p)
    decaying = [{"params": found, "weight_decay": spec.weight_decay * share} for share, found in groups.items()]
    row = OPTIMIZERS[spec.name]
    return row.make(decaying, spec.lr, part(spec, row.options))


def add_learned(
    optimizer: torch.optim.Optimizer, learned: list[tuple[list[nn.Parameter], float]], lr_share: float
) -> None:
    """Put what quantizers learn into groups of their own: (parameters, weight decay), at a share of the rate."""
    for parameters, weight_decay in learned:
        optimizer.add_param_group({"params": parameters, "weight_decay": weight_decay, "lr_share": lr_share})


def check_covers(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raise RuntimeError unless every trainable parameter of `model` is in `optimizer` exactly once, and no other."""
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    missing = [name for key, name in names.items() if key not in held]
    if missing or len(held) != len(set(held)) or set(held) - set(names):
        raise RuntimeError(f"the optimizer and the model hold different parameters; not trained: {missing}")


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_share", 1.0)
