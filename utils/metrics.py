"""Accuracy and loss, computed from totals over all images, not from means of batches."""

from dataclasses import astuple, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.distributed import Processes


@dataclass
class Score:
    """Running totals over the images added so far."""

    images: int = 0
    correct1: int = 0
    correct5: int = 0
    loss_sum: float = 0.0

    def add(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Add a batch. logits: [N, classes]. Returns the class that counts as predicted, of each: [N].

        labels: [N], or probabilities [N, classes], of which the largest is the class.
        """
        predicted, found = measured(logits, labels)
        self.count(len(labels), *found.tolist())
        return predicted

    def count(self, images: int, correct1: float, correct5: float, loss_sum: float) -> None:
        """Add what `measured` found for a batch of so many images."""
        self.images += images
        self.correct1 += int(correct1)
        self.correct5 += int(correct5)
        self.loss_sum += loss_sum

    def summary(self) -> dict[str, float]:
        """{"top1", "top5"}: percent of all images; "loss": the mean cross-entropy."""
        n = max(self.images, 1)
        return {"top1": 100 * self.correct1 / n, "top5": 100 * self.correct5 / n, "loss": self.loss_sum / n}


def measured(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(the predicted class of each image, int64 [N]; fp32 [3]: how many are right, how many are among the best five,
    and the sum of their cross-entropies). Waits for no device."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = best == (labels if labels.ndim == 1 else labels.argmax(1))[:, None]
    loss_sum = F.cross_entropy(logits.float(), labels, reduction="sum")
    return best[:, 0], torch.stack([hits[:, 0].sum(), hits.sum(), loss_sum])


@dataclass
class Unread:
    """What was measured in some batches and stays on the device until `read`, which waits for it."""

    images: list[int] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor | None = None) -> None:
        """loss: that of training, a scalar, which `read` returns."""
        _, row = measured(logits, labels)
        self.images.append(len(labels))
        self.rows.append(torch.cat([row, row[-1:] if loss is None else loss.detach().float()[None]]))

    def read(self, into: Score) -> list[float]:
        """Add everything to the score and forget it. Returns the loss of each batch."""
        rows, images = torch.stack(self.rows).tolist() if self.rows else [], self.images
        self.images, self.rows = [], []
        for count, row in zip(images, rows, strict=True):
            into.count(count, *row[:3])
        return [row[3] for row in rows]


@torch.inference_mode()
def score(model, batches, device: torch.device) -> Score:
    """The score of a classifier over batches of (images, labels). Sets no mode: call model.eval() before."""
    total, unread = Score(), Unread()
    for images, labels in batches:
        unread.add(model(images.to(device)), labels.to(device))
    unread.read(total)
    return total


def sum_over_processes(local: Score, processes: Processes) -> Score:
    """The sum of the scores of all processes."""
    images, correct1, correct5, loss_sum = processes.sum(astuple(local))
    return Score(int(images), int(correct1), int(correct5), loss_sum)
