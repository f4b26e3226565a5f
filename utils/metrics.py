"""Accuracy and loss, computed from totals over all images, not from means of batches."""

from dataclasses import astuple, dataclass

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
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == (labels if labels.ndim == 1 else labels.argmax(1))[:, None]
        self.images += len(labels)
        self.correct1 += int(hits[:, 0].sum())
        self.correct5 += int(hits.sum())
        self.loss_sum += float(F.cross_entropy(logits.float(), labels, reduction="sum"))
        return best[:, 0]

    def summary(self) -> dict[str, float]:
        """{"top1", "top5"}: percent of all images; "loss": the mean cross-entropy."""
        n = max(self.images, 1)
        return {"top1": 100 * self.correct1 / n, "top5": 100 * self.correct5 / n, "loss": self.loss_sum / n}


@torch.inference_mode()
def score(model, batches, device: torch.device) -> Score:
    """The score of a classifier over batches of (images, labels). Sets no mode: call model.eval() before."""
    total = Score()
    for images, labels in batches:
        total.add(model(images.to(device)), labels.to(device))
    return total


def sum_over_processes(local: Score, processes: Processes) -> Score:
    """The sum of the scores of all processes."""
    images, correct1, correct5, loss_sum = processes.sum(astuple(local))
    return Score(int(images), int(correct1), int(correct5), loss_sum)
