"""Accuracy and loss are totals over all images."""

import pytest
import torch
from torch import nn

from utils import metrics


def test_score_is_a_total_not_a_mean_of_batches():
    logits = torch.eye(10) * 5
    score = metrics.Score()
    score.add(logits[:9], torch.arange(9))
    score.add(logits[9:], torch.tensor([0]))
    found = score.summary()
    assert found["top1"] == pytest.approx(90.0)
    assert found["loss"] == pytest.approx(
        float(nn.functional.cross_entropy(logits, torch.tensor([*range(9), 0]))), rel=1e-6
    )


def test_top5_with_fewer_than_five_classes():
    score = metrics.Score()
    score.add(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    assert score.summary()["top5"] == 100.0


def test_what_counts_as_predicted_is_returned():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    assert metrics.Score().add(logits, torch.tensor([1, 1])).tolist() == [1, 0]


def test_what_is_read_later_is_the_same_score():
    at_once, later, unread = metrics.Score(), metrics.Score(), metrics.Unread()
    for size in (3, 5):
        logits, labels = torch.randn(size, 7), torch.randint(7, (size,))
        at_once.add(logits, labels)
        unread.add(logits, labels, torch.tensor(float(size)))
    assert unread.read(later) == [3.0, 5.0]
    assert later == at_once
    assert unread.read(later) == []
    assert later == at_once


def test_of_mixed_labels_the_larger_share_is_the_class():
    logits, shares = torch.randn(40, 6), torch.rand(40, 6).softmax(1)
    mixed, plain = metrics.Score(), metrics.Score()
    mixed.add(logits, shares)
    plain.add(logits, shares.argmax(1))
    assert (mixed.correct1, mixed.correct5) == (plain.correct1, plain.correct5)
    of_each = -(shares * logits.log_softmax(1)).sum(1)
    assert mixed.loss_sum == pytest.approx(float(of_each.sum()), rel=1e-5)
