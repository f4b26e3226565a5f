"""An exported model that computes something else, for any number of images, is noticed."""

import pytest
import torch

from quant.export.batch_check import COUNTS, check_batches


def logits(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1)[:, :4]


def test_equal_models_pass_and_each_number_of_images_is_tried():
    seen = []

    def counted(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return logits(images)

    check_batches(logits, counted, 4, 0.0, "net.npz")
    assert seen == list(COUNTS)


@pytest.mark.parametrize(
    ("other", "count"),
    [
        (lambda images: logits(images) + 1, 1),
        (lambda images: logits(images).squeeze(0), 1),
        (lambda images: logits(images) + (len(images) == 3), 3),
        (lambda images: logits(images) * float("nan"), 1),
        (lambda images: logits(images) * 1.001, 1),
    ],
)
def test_other_logits_are_an_error_that_names_the_file_and_the_number_of_images(other, count):
    with pytest.raises(RuntimeError, match=rf"^net.npz: the loaded model computes other .* \(images: {count}\)$"):
        check_batches(logits, other, 4, 1e-5, "net.npz")


def test_what_is_computed_in_float_may_differ_a_little():
    check_batches(logits, lambda images: logits(images) * (1 + 1e-6), 4, 1e-5, "net.npz")
