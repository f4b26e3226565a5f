"""Optimizers by name, and the check that each trainable parameter is in one exactly once."""

from collections.abc import Iterable

import torch
from torch import nn

OPTIMIZERS = {
    "sgd": lambda groups, lr, momentum, nesterov: torch.optim.SGD(
        groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0
    ),
    "rmsprop": lambda groups, lr, momentum, nesterov: torch.optim.RMSprop(groups, lr=lr, momentum=momentum, alpha=0.9),
    "adam": lambda groups, lr, momentum, nesterov: torch.optim.Adam(groups, lr=lr),
    "adamw": lambda groups, lr, momentum, nesterov: torch.optim.AdamW(groups, lr=lr),
}


def build(
    name: str, model: nn.Module, lr: float, momentum: float, nesterov: bool, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer with two groups: weights of convolutions and linear layers decay; biases and norms do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[name](groups, lr, momentum, nesterov)


def add_new(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Put parameters that came later (learned step sizes, clips) into a group of their own, without weight decay."""
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    new = [p for p in parameters if id(p) not in known]
    if new:
        optimizer.add_param_group({"params": new, "weight_decay": 0.0})


def check_covers(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raise RuntimeError unless every trainable parameter of `model` is in `optimizer` exactly once, and no other."""
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    missing = [name for key, name in names.items() if key not in held]
    if missing or len(held) != len(set(held)) or set(held) - set(names):
        raise RuntimeError(f"the optimizer and the model hold different parameters; not trained: {missing}")


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
