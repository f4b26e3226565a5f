"""Checkpoints: a model's float or fake-quantized state and the settings that made it, never only an integer model.

    format      4 (1 lacked a state for operators without weights, 2 the checksum; settings of 3 have the keys of all
                methods)
    settings    the resolved settings, as JSON-able values
    prepared    whether `model` is the state of a prepared (fake-quantized) model, or of the float one
    classes, mean, std
    epoch       how many are done
    model       the state dict, with the quantizers' ranges and flags
    training    while a run trains: its optimizer, the step within the epoch, the running score; else None
    checksum    of all the above

An integer model is rebuilt from its checkpoint for any engine, so an upgrade of torch does not make files unreadable.
"""

import json
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from utils.config import validate
from utils.errors import UserError, joined_lines
from utils.runs import tensor_file
from utils.sections import Section

FORMAT = 4
ALSO_READ = (3,)
"""Earlier formats that can be read; the caller brings their settings up to date."""
Channels = Field(min_length=3, max_length=3)


class CheckpointHeader(Section):
    """What a checkpoint contains in addition to its settings and its tensors."""

    prepared: bool
    classes: Annotated[list[str], Field(min_length=1)]
    mean: Annotated[list[FiniteFloat], Channels]
    std: Annotated[list[PositiveFloat], Channels]
    epoch: NonNegativeInt


def pack(model: nn.Module, settings: dict, dataset, prepared: bool, epoch: int, training: dict | None = None) -> dict:
    """The contents of a checkpoint. `dataset` gives class names, mean and std; `settings` are JSON-able values."""
    return {
        "format": FORMAT,
        "settings": settings,
        "prepared": prepared,
        "classes": list(dataset.classes),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "epoch": epoch,
        "model": {name: value.detach().cpu() for name, value in model.state_dict().items()},
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
        written = " ".join(str(found).split())[:20]
        raise UserError(
            f"{path}: not a checkpoint of train.py, format {FORMAT} (it says {written})"
            + (" written by an older version: train again" if older else "")
        )
    _check_contents(path, state)
    return state


def _check_contents(path: str, state: dict) -> None:
    """Raise UserError if something other than the tensors is missing or has the wrong type."""
    validate(CheckpointHeader, {key: state.get(key) for key in CheckpointHeader.model_fields}, path)
    types = {"settings": dict, "model": dict, "training": dict | None}
    for key, expected in types.items():
        if not isinstance(state.get(key), expected):
            raise UserError(f"{path}: not a checkpoint of train.py: {key} is a {type(state.get(key)).__name__}")
    try:
        json.dumps(state["settings"])
    except (TypeError, ValueError) as error:  # a tensor, for example
        raise UserError(f"{path}: not plain values: {error}") from None


def load_weights(model: nn.Module, path: str, allow_new_head: bool = False) -> str | None:
    """Load a checkpoint of train.py or a plain state dict (torchvision's, for example) into a float model.

    The state of quantizers is left out. allow_new_head: if only the last layer differs, in its number of classes, load
    all other layers, leave that one as it is, and return its name; otherwise the result is None. Raises UserError if
    names or shapes do not fit.
    """
    state, expected = check_weights(model, path), model.state_dict()
    wrong = [name for name in expected if expected[name].shape != getattr(state[name], "shape", None)]
    head = list(expected)[-1].rpartition(".")[0]
    if allow_new_head and wrong and all(_is_head(name, head, state[name], expected[name]) for name in wrong):
        model.load_state_dict({name: state[name] for name in expected if name not in wrong}, strict=False)
        return head
    if wrong:
        name = wrong[0]
        shapes = f"{tuple(getattr(state[name], 'shape', ()))} there, {tuple(expected[name].shape)} here"
        raise UserError(f"{path}: not weights of this model: {name} is {shapes} ({len(wrong)} do not fit)")
    model.load_state_dict({name: state[name] for name in expected})
    return None


def _is_head(name: str, head: str, there: Any, here: Tensor) -> bool:
    """Whether a tensor belongs to the layer called `head` and differs only in the number of outputs."""
    return name.rpartition(".")[0] == head and isinstance(there, Tensor) and there.shape[1:] == here.shape[1:]


def check_weights(model: nn.Module, path: str, model_name: str | None = None) -> dict:
    """The state dict in a checkpoint of train.py or in a plain file, which has all names of this float model.

    model_name: refuse the checkpoint of another model. Raises UserError.
    """
    found = tensor_file.load(path)
    is_checkpoint = "model" in found and "format" in found
    if is_checkpoint:
        _check_contents(path, found)
        trained = _model_name(found["settings"])
        if model_name not in (None, trained):
            raise UserError(f"{path}: a checkpoint of {trained}, not of {model_name}")
    state = found["model"] if is_checkpoint else found
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unknown = [] if is_checkpoint and found["prepared"] else [name for name in state if name not in expected]
    if missing or unknown:
        which = f"{missing[0]} is missing" if missing else f"it also has {unknown[0]}"
        raise UserError(f"{path}: not weights of this model: {which} ({len(missing) + len(unknown)} names do not fit)")
    return state


def _model_name(settings: dict) -> str | None:
    model = settings.get("model")
    return model.get("name") if isinstance(model, dict) else None


def restore(model: nn.Module, state: dict, path: str) -> None:
    """Load a checkpoint's state into the model that its settings build. Raises UserError if they do not fit."""
    try:
        model.load_state_dict(state["model"])
    except Exception as error:  # names, shapes, and anything else that a file may contain
        raise UserError(f"{path}: does not fit the model it names ({joined_lines(error, 160)})") from None
