"""The loss of training: cross-entropy, and with a teacher the distance to its answers (arXiv 1503.02531).

    L = (1 - share) CE(labels, student)  +  share T^2 KL(softmax(teacher / T) || softmax(student / T))

LSQ's authors take the float net as the teacher, T = 1 and equal shares (arXiv 1902.08153, section 3.6). The teacher
sees the very images that the student sees, cropped and mirrored as they are.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images, logits fp32 [N, classes], labels [N]) -> the mean over the images."""


def loss(label_smoothing: float, teacher: Callable[[Tensor], Tensor] | None, share: float, temperature: float) -> Loss:
    """The loss of a run. label_smoothing is the labels' alone."""

    def of_labels(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    if teacher is None:
        return of_labels

    def taught(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = F.log_softmax(teacher(images).float() / temperature, 1)
        distance = F.kl_div(F.log_softmax(logits / temperature, 1), wanted, reduction="batchmean", log_target=True)
        return (1 - share) * of_labels(images, logits, labels) + share * temperature**2 * distance

    return taught
