"""Optimizers by name, what decays in them, and the check that each trainable parameter is in one exactly once."""

import torch
from torch import nn

from utils.config import OptimSettings
from utils.errors import UserError, choose

PLAIN = {
    "sgd": lambda groups, lr, momentum, nesterov: torch.optim.SGD(
        groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0
    ),
    "rmsprop": lambda groups, lr, momentum, nesterov: torch.optim.RMSprop(groups, lr=lr, momentum=momentum, alpha=0.9),
    "adam": lambda groups, lr, momentum, nesterov: torch.optim.Adam(groups, lr=lr),
    "adamw": lambda groups, lr, momentum, nesterov: torch.optim.AdamW(groups, lr=lr),
}
BOOSTED = {f"q{name}": make for name, make in PLAIN.items()}
"""The same optimizers, to which methods/gradboost.py is attached."""
OPTIMIZERS = PLAIN | BOOSTED

DECAYS = {
    "weights": lambda p: float(p.ndim > 1),
    "all": lambda p: 1.0,
    "statassist": lambda p: (0.0 if p.shape[1] == 1 else 1.0) if p.ndim == 4 else 0.01,
}
"""The share of optim.weight_decay that a parameter gets. weights: convolution and linear weights, none else; all: every
one; statassist: the reference's rule, none for depthwise weights, a hundredth for linear weights, biases and norms."""


def check(spec: OptimSettings) -> None:
    """Raise UserError for an unknown optimizer, or a key that it does not read."""
    choose(OPTIMIZERS, spec.name, "optim.name")
    for key in ("mode", "clip_by", "noise_decay", "toss_coin"):
        if spec.name not in BOOSTED and getattr(spec, key) != type(spec).model_fields[key].default:
            raise UserError(f"optim.{key}: {spec.name} has no such option; optim.name=q{spec.name} has")


def build(
    name: str,
    model: nn.Module,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay_rule: str = "weights",
) -> torch.optim.Optimizer:
    """An optimizer with a group for each share of the weight decay. Those of BOOSTED come without their boost."""
    groups: dict[float, list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            groups.setdefault(DECAYS[decay_rule](p), []).append(p)
    return OPTIMIZERS[name](
        [{"params": held, "weight_decay": weight_decay * share} for share, held in groups.items()],
        lr,
        momentum,
        nesterov,
    )


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
