"""The loss with a teacher, against the formula in fp64."""

import math

import pytest
import torch
import torch.nn.functional as F

from utils.training import distill

IMAGES, LABELS = torch.zeros(6, 3, 2, 2), torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("share", "temperature"), [(0.5, 1.0), (0.9, 4.0), (1.0, 2.0)])
def test_the_formula(share, temperature, smoothing):
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    found = distill.loss(smoothing, lambda images: teacher, share, temperature)(IMAGES, student, LABELS)
    p, q = ((x.double() / temperature).softmax(1) for x in (teacher, student))
    wanted = F.one_hot(LABELS, 4) * (1 - smoothing) + smoothing / 4
    of_labels = -(wanted * student.double().log_softmax(1)).sum(1).mean()
    distance = (p * (p / q).log()).sum(1).mean()
    assert float(found) == pytest.approx(float((1 - share) * of_labels + share * temperature**2 * distance), rel=1e-5)


def test_a_teacher_is_shown_the_images_and_learns_nothing():
    seen = []
    weight = torch.ones((), requires_grad=True)

    def teacher(images):
        seen.append(images)
        return weight * torch.eye(4)[LABELS]

    student = torch.randn(6, 4, requires_grad=True)
    distill.loss(0.0, teacher, 0.5, 1.0)(IMAGES, student, LABELS).backward()
    assert seen[0] is IMAGES
    assert weight.grad is None
    assert student.grad is not None


def test_the_teachers_own_answers_cost_nothing():
    logits = torch.randn(6, 4)
    assert float(distill.loss(0.0, lambda images: logits, 1.0, 3.0)(IMAGES, logits, LABELS)) == pytest.approx(
        0, abs=1e-6
    )


def test_without_a_teacher_it_is_the_cross_entropy():
    assert float(distill.loss(0.0, None, 0.5, 1.0)(IMAGES, torch.zeros(6, 4), LABELS)) == pytest.approx(math.log(4))
