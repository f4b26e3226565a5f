"""What models predict for each image, gathered from batches."""

import torch

from quant.analysis.predictions import Recorder


def test_batches_become_one_entry_an_image():
    recorder = Recorder(["float", "x86"])
    for labels in ([0, 1], [2]):
        recorder.labels.append(torch.tensor(labels))
    logits = torch.tensor([[4.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    for rows in (slice(0, 2), slice(2, 3)):
        recorder.add("x86", logits[rows], logits[rows].argmax(1))
    found = recorder.predictions()
    assert found.labels.tolist() == found.predicted["x86"].tolist() == [0, 1, 2]
    assert torch.allclose(found.probability["x86"], logits.softmax(1).max(1).values)
    assert found.predicted["float"].shape == found.probability["float"].shape == (0,)
    assert (found.predicted["float"].dtype, found.probability["float"].dtype) == (torch.int64, torch.float32)


def test_of_equal_logits_the_probability_is_that_of_the_class_that_counts():
    recorder = Recorder(["float"])
    recorder.add("float", torch.tensor([[1.0, 5.0, 1.0]]), torch.tensor([2]))
    assert torch.allclose(recorder.predictions().probability["float"], torch.tensor([[1.0, 5.0, 1.0]]).softmax(1)[:, 2])
