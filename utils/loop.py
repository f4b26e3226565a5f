"""One epoch of training: numbers in, numbers out."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn

from utils.errors import UserError
from utils.metrics import Score


def train_epoch(
    model: nn.Module,
    batches: Iterable,
    optimizer: torch.optim.Optimizer,
    set_rate: Callable[[float], None],
    label_smoothing: float,
    clip_norm: float | None,
    bf16: bool,
    device: torch.device,
    progress: Callable[[Score, int], None],
) -> Score:
    """Train over `batches` once and return the running score of the training images.

    `set_rate(share)` is called before each step with the share of the epoch that is done; `progress(score, images)`
    after each. bf16 runs convolutions in bfloat16; quantizers leave autocast by themselves. Raises UserError at a
    loss that is not finite.
    """
    model.train()
    total, steps = Score(), len(batches)
    for step, (images, labels) in enumerate(batches):
        set_rate(step / steps)
        images, labels = images.to(device), labels.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        if not torch.isfinite(loss):
            raise UserError(f"the loss became {loss.item()} at step {step} of {steps}; try a smaller optim.lr")
        optimizer.zero_grad()
        loss.backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        total.add(logits.detach(), labels)
        progress(total, len(labels))
    return total
