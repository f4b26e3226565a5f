"""Checkpoints: a model's float or fake-quantized state and the settings that made it, never only an integer model.

    format      4 (1 lacked a state for operators without weights, 2 the checksum; settings of 3 have the keys of all
                methods)
    settings    the resolved settings, as JSON-able values
    prepared    whether `model` is the state of a prepared (fake-quantized) model, or of the float one
    inputs      what the run reads, to compare (experiment/inputs.py); None in those of older versions
    classes, mean, std
    epoch       how many are done
    model       the state dict, with the quantizers' ranges and flags
    training    while a run trains: its optimizer, the step within the epoch, the running score; else None
    checksum    of all the above

An integer model is rebuilt from its checkpoint for any engine, so an upgrade of torch does not make files unreadable.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from utils.config import blame, validate
from utils.errors import UserError, joined_lines
from utils.names import plain_name, printable
from utils.runs import tensor_file
from utils.runs.misfit import explain
from utils.runs.weights import Reading, new_head, read, state_dicts
from utils.sections import Section

FORMAT = 4
ALSO_READ = (3,)
"""Earlier formats that can be read; the caller brings their settings up to date."""
Channels = Field(min_length=1, max_length=64)


class CheckpointHeader(Section):
    """What a checkpoint contains in addition to its settings and its tensors."""

    prepared: bool
    classes: Annotated[list[str], Field(min_length=1)]
    mean: Annotated[list[FiniteFloat], Channels]
    std: Annotated[list[PositiveFloat], Channels]
    epoch: NonNegativeInt


def pack(
    model: nn.Module,
    settings: dict,
    dataset,
    prepared: bool,
    epoch: int,
    training: dict | None = None,
    inputs: dict | None = None,
) -> dict:
    """The contents of a checkpoint. `dataset` gives class names, mean and std; settings and inputs are JSON-able.

    Raises UserError if a tensor of the model is not finite, so that what was saved before stays.
    """
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    broken = next((name for name, value in tensors.items() if not bool(torch.isfinite(value).all())), None)
    if broken:
        raise UserError(
            f"{broken} is not finite ({epoch} epochs are done): the last step, the average or the calibration went "
            "wrong; what was saved is from before: use it as model.weights of a run with another run.name and a "
            "smaller optim.lr"
        )
    return {
        "format": FORMAT,
        "settings": settings,
        "inputs": inputs,
        "prepared": prepared,
        "classes": list(dataset.classes),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "epoch": epoch,
        "model": tensors,
        "training": training,
    }


def load(path: str) -> dict:
    """The contents of a checkpoint. Raises UserError if this version cannot read it.

    Whether its settings are valid is for the caller to check (experiment/rebuild.py).
    """
    state = tensor_file.load(path)
    found = state.get("format")
    if not isinstance(found, int) or found not in (FORMAT, *ALSO_READ):
        older = isinstance(found, int) and found in range(1, FORMAT)
        if "settings" not in state and any(state_dicts(state)):
            raise UserError(
                f"{path}: not a checkpoint of train.py but weights alone: give them to train.py as model.weights "
                "(run.epochs=0 makes a checkpoint of them)"
            )
        written = " ".join(str(found).split())[:20]
        raise UserError(
            f"{path}: not a checkpoint of train.py, format {FORMAT} (it says {written})"
            + (" written by an older version: train again" if older else "")
        )
    _check_contents(path, state)
    return state


def is_ours(found: dict) -> bool:
    """Whether the contents of a file look like those of a checkpoint of train.py."""
    return {"model", "format", "settings"} <= found.keys()


def _check_contents(path: str, state: dict) -> None:
    """Raise UserError if something other than the tensors is missing or has the wrong type.

    Class names that are not printable, as other programs and earlier versions saved them, are written as this one does.
    """
    if isinstance(state.get("classes"), list):
        state["classes"] = [printable_class(name) for name in state["classes"]]
    validate(CheckpointHeader, {key: state.get(key) for key in CheckpointHeader.model_fields}, path)
    inputs = state.get("inputs")
    if isinstance(inputs, dict) and isinstance(inputs.get("data"), dict):  # format 4 had it beside the inputs at first
        inputs["data"].setdefault("normalization", {"mean": state["mean"], "std": state["std"]})
    types = {"settings": dict, "model": dict, "training": dict | None, "inputs": dict | None}
    for key, expected in types.items():
        if not isinstance(state.get(key), expected):
            raise UserError(f"{path}: not a checkpoint of train.py: {key} is a {type(state.get(key)).__name__}")
    try:
        json.dumps([state["settings"], state.get("inputs")])
    except (TypeError, ValueError) as error:  # a tensor, for example
        raise UserError(f"{path}: not plain values: {error}") from None


def printable_class(name: Any) -> Any:
    """A class name of a checkpoint, printable; anything else as it is."""
    return plain_name(name) if isinstance(name, str) and name != printable(name) else name


@dataclass(frozen=True)
class Loaded:
    """What load_weights did. new_head: layers that keep their random weights, since the file is of other classes."""

    new_head: tuple[str, ...]
    done: tuple[str, ...]
    """What was done to bring the file's weights under the names of the model."""
    classes: list[str] | None
    """Those of a checkpoint of train.py; None: the file does not say."""


def load_weights(model: nn.Module, path: str, allow_new_head: bool = False) -> Loaded:
    """Load a checkpoint of train.py, or weights that another program saved (utils/runs/weights.py), into a float model.

    The state of quantizers is left out. allow_new_head: if only the last layer differs, in its number of classes, load
    all other layers and leave that one as it is. Raises UserError if names or shapes do not fit.
    """
    reading, found = _read_weights(model, path)
    head = new_head(reading, model) if allow_new_head else []
    if reading.misfits and not head:
        raise _not_of_this_model(path, reading, model, found)
    kept = {name: value for name, value in reading.tensors.items() if name.rpartition(".")[0] not in head}
    _check_numbers(kept, path)
    model.load_state_dict(kept, strict=not head)
    return Loaded(tuple(head), reading.done, found["classes"] if is_ours(found) else None)


def check_weights(model: nn.Module, path: str, model_name: str | None = None) -> None:
    """Raise UserError unless a file holds weights of this float model, of any number of classes.

    model_name: refuse the checkpoint of another model.
    """
    reading, found = _read_weights(model, path, model_name)
    if reading.misfits and not new_head(reading, model):
        raise _not_of_this_model(path, reading, model, found)
    _check_numbers(reading.tensors, path)


def _check_numbers(tensors: dict[str, Tensor], path: str) -> None:
    """Raise UserError for tensors that no model computes with: not finite, or a variance below zero."""
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{path}: {name} is not finite: its training diverged; take a checkpoint from before")
        if name.endswith("running_var") and bool((value < 0).any()):
            raise UserError(f"{path}: {name} is negative, which no variance is")


def _read_weights(model: nn.Module, path: str, model_name: str | None = None) -> tuple[Reading, dict]:
    """(the weights of a file under the names of the model, the whole file)"""
    found = tensor_file.load(path)
    if not is_ours(found):
        with blame(path):
            return read(found, model), found
    _check_contents(path, found)
    trained = _model_name(found["settings"])
    if model_name not in (None, trained):
        raise UserError(f"{path}: a checkpoint of {trained}, not of {model_name}")
    return read(found["model"], model, allow_more=found["prepared"]), found


def _not_of_this_model(path: str, reading: Reading, model: nn.Module, found: dict) -> UserError:
    return UserError(f"{path}: not weights of this model: {explain(reading, model, found)}")


def _model_name(settings: dict) -> str | None:
    model = settings.get("model")
    return model.get("name") if isinstance(model, dict) else None


def restore(model: nn.Module, state: dict, path: str) -> None:
    """Load a checkpoint's state into the model that its settings build. Raises UserError if they do not fit."""
    try:
        model.load_state_dict(state["model"])
    except Exception as error:  # names, shapes, and anything else that a file may contain
        raise UserError(f"{path}: does not fit the model it names ({joined_lines(error, 160)})") from None
    _check_numbers(state["model"], path)
