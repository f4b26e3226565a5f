"""Accuracy and loss as totals over all images, never as means of batch means."""

from dataclasses import astuple, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.distributed import Processes


@dataclass
class Score:
    """Running totals; top1 and top5 are percent of all images seen, loss is the mean cross-entropy."""

    images: int = 0
    correct1: int = 0
    correct5: int = 0
    loss_sum: float = 0.0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """logits [N, classes], labels [N]."""
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        self.images += len(labels)
        self.correct1 += int(hits[:, 0].sum())
        self.correct5 += int(hits.sum())
        self.loss_sum += float(F.cross_entropy(logits.float(), labels, reduction="sum"))

    def summary(self) -> dict[str, float]:
        n = max(self.images, 1)
        return {"top1": 100 * self.correct1 / n, "top5": 100 * self.correct5 / n, "loss": self.loss_sum / n}


@torch.inference_mode()
def score(model, batches, device: torch.device) -> Score:
    """Run a classifier over (images, labels) batches."""
    total = Score()
    for images, labels in batches:
        total.add(model(images.to(device)), labels.to(device))
    return total


def of_all(own: Score, processes: Processes) -> Score:
    """The totals of all processes."""
    images, correct1, correct5, loss_sum = processes.sum(astuple(own))
    return Score(int(images), int(correct1), int(correct5), loss_sum)
