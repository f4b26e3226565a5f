"""A teacher sees the images as it was trained on them, and has the student's classes and image size."""

from types import SimpleNamespace

import pytest
import torch

import models
from experiment.settings import TrainSettings, resolved
from experiment.teacher import load_teacher
from utils.errors import UserError
from utils.runs import checkpoint

CPU = torch.device("cpu")
CLASSES, MEAN, STD = ["a", "b", "c"], (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def dataset(classes=CLASSES, mean=MEAN, std=STD):
    return SimpleNamespace(classes=classes, mean=mean, std=std)


@pytest.fixture
def teacher(tmp_path):
    """(the model, the path of its checkpoint)"""
    sections = {"data": {"image_size": 16}, "model": {"name": "resnet20"}}
    model = models.build("resnet20", 3, 16, {})
    settings = resolved(TrainSettings.model_validate(sections)).model_dump(mode="json")
    torch.save(checkpoint.pack(model, settings, dataset(), False, 1), tmp_path / "last.pt")
    return model.eval(), str(tmp_path / "last.pt")


def test_images_are_normalized_as_the_teachers_were(teacher):
    model, path = teacher
    pixels = torch.rand(4, 3, 16, 16)
    for mean, std in ((MEAN, STD), ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))):
        here, there = (
            (pixels - torch.tensor(m).view(3, 1, 1)) / torch.tensor(s).view(3, 1, 1)
            for m, s in (
                (mean, std),
                (MEAN, STD),
            )
        )
        answer = load_teacher(path, "resnet20", dataset(mean=mean, std=std), 16, CPU, False)
        with torch.no_grad():
            assert torch.allclose(answer(here), model(there), atol=1e-4)


@pytest.mark.parametrize(
    ("classes", "image_size", "message"),
    [
        (["a", "b"], 16, r"data: 2 classes .* trained on 3"),
        (CLASSES, 32, r"^quant.teacher: .*last.pt was trained on images of 16 pixels$"),
    ],
)
def test_another_task_is_refused(classes, image_size, message, teacher):
    with pytest.raises(UserError, match=message):
        load_teacher(teacher[1], "resnet20", dataset(classes), image_size, CPU, False)
