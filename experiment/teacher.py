"""The teacher of quant.teacher, whose outputs a run also learns from (distillation)."""

from collections.abc import Callable

import torch
from torch import Tensor

import data
import models
from experiment.rebuild import rebuild
from utils.errors import UserError


def load_teacher(
    path: str, student: str, dataset: data.Dataset, image_size: int, device: torch.device, bf16: bool
) -> Callable[[Tensor], Tensor]:
    """A function from normalized images [N, 3, H, W] of this dataset to the teacher's logits [N, classes].

    path: the teacher's checkpoint. student: name of the model that learns. bf16: compute as the student does.
    Raises UserError if the teacher has other classes or another image size.
    """

    def check_trusted(name: str) -> None:
        remedy = f"quant.teacher takes models of a table, {student}, and functions of your own"
        models.check_trusted(name, name == student, remedy, path)

    model, state, trained = rebuild(path, check_trusted)
    data.check_classes(dataset.classes, state["classes"])
    if trained.data.image_size != image_size:
        raise UserError(f"quant.teacher: {path} was trained on images of {trained.data.image_size} pixels")
    if trained.data.channels != len(dataset.mean):
        raise UserError(f"quant.teacher: {path} was trained on images of {trained.data.channels} channel(s)")
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    affine = data.renormalized((dataset.mean, dataset.std), (state["mean"], state["std"]))
    gain, shift = (values.to(device) for values in affine)

    def answer(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return model(images * gain + shift)

    return answer
