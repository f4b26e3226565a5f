"""What a run reads: its images and its checkpoints. Two runs are the same if their settings and their inputs are."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import torch

import data
import models
from experiment import datasets
from experiment.settings import TrainSettings
from experiment.teacher import load_teacher
from utils import distributed
from utils.distributed import Processes
from utils.errors import UserError
from utils.runs import checkpoint


def load(settings: TrainSettings, processes: Processes) -> tuple[data.Dataset, dict[str, Any]]:
    """(the images, all inputs as JSON-able values); the first process of each machine reads them before the others,
    since it may have to download them.

    Raises UserError for what cannot be read, does not fit or is too little to train on, and if the processes see
    different images.
    """
    if distributed.local_rank() > 0:
        processes.barrier()
    dataset, found = datasets.load(settings.data), read(settings)
    if distributed.local_rank() == 0:
        processes.barrier()
    (differs,), _ = processes.any_flag_and_sum([found != processes.broadcast_object(found)], 0)
    if differs:
        raise UserError("data.root: the processes see different images or checkpoints; each has to read the same files")
    if settings.run.epochs > 0:
        data.check_training(len(dataset.training), settings.data.batch_size, processes.world_size)
    check_checkpoints(settings, dataset)
    return dataset, found


def check_checkpoints(settings: TrainSettings, dataset: data.Dataset) -> None:
    """Raise UserError if the weights or the teacher that the settings name are not for the classes of the dataset."""
    asked, d, teacher = settings.model, settings.data, settings.quant.teacher
    if asked.weights and settings.run.epochs == 0:  # else a new head is trained
        checkpoint.load_weights(
            models.build(asked.name, len(dataset.classes), d.image_size, asked.options, d.channels), asked.weights
        )
    if teacher:
        load_teacher(teacher, asked.name, dataset, d.image_size, torch.device("cpu"), bf16=False)


def read(settings: TrainSettings) -> dict[str, Any]:
    """All inputs of a run: data.identity of its dataset and a digest of each checkpoint that it reads."""
    files = {"model.weights": settings.model.weights, "quant.teacher": settings.quant.teacher}
    return {"data": datasets.identity(settings.data)} | {
        key: path and digest(Path(path)) for key, path in files.items()
    }


def digest(path: Path) -> str:
    """Of the contents of a file. Raises UserError if it cannot be read."""
    try:
        found = path.stat()
        return _digest(path, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


@functools.lru_cache(maxsize=16)
def _digest(path: Path, modified: int, size: int) -> str:
    """Read once while the file is as it is: all runs of a sweep start from one."""
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        for chunk in iter(functools.partial(file.read, 2**20), b""):
            found.update(chunk)
    return found.hexdigest()
