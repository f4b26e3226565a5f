"""One epoch of training: numbers in, numbers out."""

from collections.abc import Callable, Iterable
from signal import SIGTERM

import torch
from torch import nn

from utils import interrupt
from utils.distill import Loss
from utils.errors import UserError
from utils.finite import first_not_finite
from utils.metrics import Score
from utils.ranks import Ranks


def train_epoch(
    model: nn.Module,
    batches: Iterable,
    steps: range,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    before: Callable[[int], None],
    score: Score,
    loss_of: Loss,
    clip_norm: float | None,
    bf16: bool,
    ranks: Ranks,
    progress: Callable[[Score, int], None],
    due: Callable[[], bool],
    keep: Callable[[int, Score], str],
) -> Score:
    """Train over `batches`, one for each of `steps`, and return `score` with the training images added.

    `before(step)` is called before each step, `progress(score, images of all processes)` after it, and where `due()`
    says so in any process, or somebody asks for an end, `keep(steps done, score)`, which says how to go on. bf16 runs
    convolutions in bfloat16; quantizers leave autocast by themselves. The loss is the mean over the images of all
    processes. Raises UserError at a loss that is not finite, before the step is taken, and Interrupted.
    """
    model.train()
    with interrupt.listening() as request:
        for step, (images, labels) in zip(steps, batches, strict=True):
            before(step)
            images, labels = images.to(ranks.device), labels.to(ranks.device)
            with torch.autocast(ranks.device.type, torch.bfloat16, enabled=bf16):
                logits = model(images)
            loss = loss_of(images, logits.float(), labels)
            flags = bool(request.number), due(), not torch.isfinite(loss)
            (stop, save, lost), images_of_all = ranks.told(flags, len(labels))
            if lost:
                where = first_not_finite(getattr(model, "module", model), images)
                became = "of another process is not finite" if torch.isfinite(loss) else f"became {loss.item()}"
                raise UserError(
                    f"the loss {became} in epoch {epoch + 1}, step {step + 1} of {steps.stop}; the first "
                    f"layer whose output is not finite: {where}; try a smaller optim.lr (last.pt is of before)"
                )
            optimizer.zero_grad()
            (loss * (len(labels) * ranks.world / images_of_all)).backward()
            if clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            score.add(logits.detach(), labels)
            progress(score, images_of_all)
            if stop or save:
                message = keep(step + 1, score)
            if stop:
                raise interrupt.Interrupted(request.number or SIGTERM, message)
    return score
