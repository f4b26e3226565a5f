"""The training loss: cross-entropy and, with a teacher, knowledge distillation (arXiv 1503.02531).

    L = (1 - share) CE(labels, student)  +  share T^2 KL(softmax(teacher / T) || softmax(student / T))

LSQ's authors use the float model as the teacher, T = 1 and share = 0.5 (arXiv 1902.08153, section 3.6). The teacher
gets the same augmented images as the student.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images [N, C, H, W], logits fp32 [N, classes], labels [N] or probabilities [N, classes]) -> the mean loss."""


def loss(label_smoothing: float, teacher: Callable[[Tensor], Tensor] | None, share: float, temperature: float) -> Loss:
    """The loss function of a run. label_smoothing only applies to the cross-entropy. teacher None: no distillation."""

    def label_loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    if teacher is None:
        return label_loss

    def distillation_loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = F.log_softmax(teacher(images).float() / temperature, 1)
        distance = F.kl_div(F.log_softmax(logits / temperature, 1), target, reduction="batchmean", log_target=True)
        return (1 - share) * label_loss(images, logits, labels) + share * temperature**2 * distance

    return distillation_loss
