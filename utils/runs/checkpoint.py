"""Checkpoints: the trained float or fake-quant state and the setting that made it, never only an integer model.

    format      3 (1 had no operators without weights of its own, 2 no checksum)
    settings    the resolved setting, as JSON-able values
    prepared    whether `model` is the state of a prepared model, or still of the float one
    classes, mean, std
    epoch       how many are done
    model       the state dict, quantizers' ranges and flags among it
    training    while a run trains: its optimizer, the step within the epoch, what was counted so far; else None
    checksum    of all that

Integer models are rebuilt from it, for whichever engine, so that no torch upgrade strands a file.
"""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from utils.runs import tensor_file
from utils.config import Section, TrainSettings, check
from utils.errors import UserError

FORMAT = 3
Channels = Field(min_length=3, max_length=3)


class Head(Section):
    """What a checkpoint says beside its setting and its tensors."""

    prepared: bool
    classes: Annotated[list[str], Field(min_length=1)]
    mean: Annotated[list[FiniteFloat], Channels]
    std: Annotated[list[PositiveFloat], Channels]
    epoch: NonNegativeInt


def pack(
    model: nn.Module, settings: TrainSettings, dataset, prepared: bool, epoch: int, training: dict | None = None
) -> dict:
    """What a checkpoint holds. `dataset` gives class names and normalisation."""
    return {
        "format": FORMAT,
        "settings": settings.model_dump(),
        "prepared": prepared,
        "classes": list(dataset.classes),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "epoch": epoch,
        "model": {name: value.detach().cpu() for name, value in model.state_dict().items()},
        "training": training,
    }


def load(path: str) -> tuple[dict, TrainSettings]:
    """A checkpoint and its setting. Raises UserError if it is not one that this version reads."""
    state = tensor_file.load(path)
    found = state.get("format")
    if not isinstance(found, int) or found != FORMAT:
        older = isinstance(found, int) and found in range(1, FORMAT)
        said = " ".join(str(found).split())[:20]
        raise UserError(
            f"{path}: not a checkpoint of train.py, format {FORMAT} (it says {said})"
            + (" written by an older version: train again" if older else "")
        )
    return state, _checked(path, state)


def _checked(path: str, state: dict) -> TrainSettings:
    """The setting of a checkpoint. Raises UserError if that, or what stands beside it, is not what it should be."""
    check(Head, {key: state.get(key) for key in Head.model_fields}, path)
    kinds = {"settings": dict, "model": dict, "training": dict | None}
    for key, kind in kinds.items():
        if not isinstance(state.get(key), kind):
            raise UserError(f"{path}: not a checkpoint of train.py: {key} is a {type(state.get(key)).__name__}")
    return check(TrainSettings, state["settings"], path)


def rebuild(
    path: str, build: Callable, prepare: Callable, check_trusted: Callable[[str], None]
) -> tuple[nn.Module, dict, TrainSettings]:
    """The model of a checkpoint, with the checkpoint and its setting: prepared if training got that far, else float.

    build, prepare: models.build and quant.prepare; check_trusted(model's name) raises UserError for a name that a file
    may not call.
    """
    state, trained = load(path)
    check_trusted(trained.model.name)
    model = build(trained.model.name, len(state["classes"]), trained.data.image_size, trained.model.options)
    if state["prepared"]:
        model = prepare(model, trained.quant)
    restore(model, state, path)
    return model, state, trained


def load_weights(model: nn.Module, path: str, head_anew: bool = False) -> str | None:
    """Load a checkpoint of train.py or a plain state dict (torchvision's, say) into a float model.

    Quantizer state is left out. head_anew: where all but the last layer fits, which has another number of classes
    there, that layer is left as it is, and its name returned. Raises UserError if the names or shapes do not fit.
    """
    state, wanted = check_weights(model, path), model.state_dict()
    wrong = [name for name in wanted if wanted[name].shape != getattr(state[name], "shape", None)]
    head = list(wanted)[-1].rpartition(".")[0]
    if head_anew and wrong and all(_is_head(name, head, state[name], wanted[name]) for name in wrong):
        model.load_state_dict({name: state[name] for name in wanted if name not in wrong}, strict=False)
        return head
    if wrong:
        name = wrong[0]
        shapes = f"{tuple(getattr(state[name], 'shape', ()))} there, {tuple(wanted[name].shape)} here"
        raise UserError(f"{path}: not weights of this model: {name} is {shapes} ({len(wrong)} do not fit)")
    model.load_state_dict({name: state[name] for name in wanted})
    return None


def _is_head(name: str, head: str, there: Any, here: Tensor) -> bool:
    """Whether a tensor is of the layer of that name, and differs in the number of outputs alone."""
    return name.rpartition(".")[0] == head and isinstance(there, Tensor) and there.shape[1:] == here.shape[1:]


def check_weights(model: nn.Module, path: str, name: str | None = None) -> dict:
    """The state in a checkpoint of train.py, or a plain state dict, that has the names of a float model.

    name: the model's; a checkpoint of another is refused. Raises UserError.
    """
    found = tensor_file.load(path)
    ours = "model" in found and "format" in found
    trained = _checked(path, found).model.name if ours else name
    if name is not None and trained != name:
        raise UserError(f"{path}: a checkpoint of {trained}, not of {name}")
    state = found["model"] if ours else found
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state]
    strange = [] if ours and found["prepared"] else [name for name in state if name not in wanted]
    if missing or strange:
        which = f"{missing[0]} is not in it" if missing else f"it has {strange[0]}, too"
        raise UserError(f"{path}: not weights of this model: {which} ({len(missing) + len(strange)} names do not fit)")
    return state


def restore(model: nn.Module, state: dict, path: str) -> None:
    """Load a checkpoint's state into the model its setting builds. Raises UserError if they do not fit."""
    try:
        model.load_state_dict(state["model"])
    except Exception as error:  # names, shapes, and whatever else may be in the file
        raise UserError(f"{path}: does not fit the model it names ({' '.join(str(error).split())[:160]})") from None
