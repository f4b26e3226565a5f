"""What each model predicts for each image, as tensors with one entry an image."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Predictions:
    """Of N images in the order of their batches: labels int64 [N] and, by the name of a model, the predicted class
    int64 [N] and its probability fp32 [N]."""

    labels: Tensor
    predicted: dict[str, Tensor]
    probability: dict[str, Tensor]


class Recorder:
    """Collects Predictions batch by batch. names: of the models. labels: those of each batch so far."""

    def __init__(self, names: Iterable[str]):
        self.labels: list[Tensor] = []
        self.found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}

    def add(self, name: str, logits: Tensor, predicted: Tensor) -> None:
        """Add a batch of a model: logits [B, classes], and the class [B] that counts as its prediction."""
        probability = logits.float().softmax(1).gather(1, predicted[:, None])[:, 0]
        self.found[name].append((predicted, probability))

    def predictions(self) -> Predictions:
        """Of all batches so far."""
        return Predictions(
            _joined(self.labels, torch.int64),
            {name: _joined([one for one, _ in batches], torch.int64) for name, batches in self.found.items()},
            {name: _joined([one for _, one in batches], torch.float32) for name, batches in self.found.items()},
        )


def _joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([torch.empty(0, dtype=dtype), *parts])
