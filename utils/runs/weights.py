"""Weights for a model out of a file of any program: which of its state dicts, under which names.

A file is a plain state dict or holds some (`state_dict`, `model`, `model_ema` ...), with an optimizer and arguments
beside them. utils/runs/weight_names.py brings their names under those of the model; utils/runs/misfit.py says why some
do not fit.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.runs.weight_names import Tensors, preferred, prefixes, under_names_of

USUAL = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params")
"""Names of the weights in a file with other things, the most usual first."""
NOT_WEIGHTS = re.compile(r"optim|sched|scaler|grad|momentum", re.IGNORECASE)
"""In names of what training needs besides weights."""
MAX_DEPTH = 4


@dataclass(frozen=True)
class Reading:
    """The tensors of one state dict of a file, under the names of a model.

    source: where it is in the file, "" if it is the file. done: what was done to its names and tensors.
    missing, unknown: names that only the model has, and only the file. wrong: names of both, in other shapes or kinds.
    """

    source: str
    original: Tensors
    tensors: Tensors
    done: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def misfits(self) -> int:
        return len(self.missing) + len(self.unknown) + len(self.wrong)


def read(found: dict, model: nn.Module, allow_more: bool = False) -> Reading:
    """The weights of a file that fit the model best. allow_more: leave out every name that the model has not.

    Of several that fit, the average of the weights is taken, then the most usual name. Raises UserError if that leaves
    more than one.
    """
    wanted = model.state_dict()
    inside = dict(state_dicts(found))
    likely = {source: t for source, t in inside.items() if sum(prefixes(t, wanted).values())} or inside
    readings = {source: fitted(source, tensors, model, allow_more) for source, tensors in likely.items()}
    if not readings:
        return fitted("", {}, model, allow_more)
    fewest = min(reading.misfits for reading in readings.values())
    best = {source: reading for source, reading in readings.items() if reading.misfits == fewest}
    return best[_chosen(best)]


def _chosen(best: dict[str, Reading]) -> str:
    """The place of several that fit alike. Raises UserError if they differ and nothing tells which one is meant."""
    first, *others = best
    chosen = "" if "" in best else preferred(best, USUAL)
    if chosen is not None or best[first].misfits or all(_same(best[first], best[other]) for other in others):
        return first if chosen is None else chosen
    raise UserError(f"holds several models: {', '.join(best)}; save the state dict of the one that you mean alone")


def _same(a: Reading, b: Reading) -> bool:
    return all(torch.equal(value, b.tensors[name]) for name, value in a.tensors.items())


def state_dicts(found: dict, source: str = "", depth: int = 0) -> Iterator[tuple[str, Tensors]]:
    """(where, tensors) of every dict in the file that holds tensors by name, the file itself first."""
    named = {name: value for name, value in found.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield source, tensors
    for name, value in named.items():
        if isinstance(value, dict) and depth < MAX_DEPTH and not NOT_WEIGHTS.search(name):
            yield from state_dicts(value, f"{source}.{name}" if source else name, depth + 1)


def fitted(source: str, original: Tensors, model: nn.Module, allow_more: bool) -> Reading:
    """These tensors under the names of the model, and what does not fit."""
    wanted = model.state_dict()
    tensors, done = under_names_of(model, original)
    if allow_more:
        tensors = {name: value for name, value in tensors.items() if name in wanted}
    return Reading(
        source,
        original,
        tensors,
        tuple([f"its {source}"] * bool(source) + done),
        missing=tuple(name for name in wanted if name not in tensors),
        unknown=tuple(name for name in tensors if name not in wanted),
        wrong=tuple(name for name, value in wanted.items() if name in tensors and not _fits(tensors[name], value)),
    )


def _fits(there: Tensor, here: Tensor) -> bool:
    """Whether a tensor can be copied into the model's: of its shape, and not integers, or of a device, for a float."""
    same_kind = there.is_floating_point() == here.is_floating_point() and not (there.is_complex() or there.is_meta)
    return there.shape == here.shape and same_kind


def new_head(reading: Reading, model: nn.Module) -> list[str]:
    """The layers that a model of other classes does not take from the file; [] if something else does not fit.

    They differ in the number of their outputs alone, all in the same, which no layer behind them reads; or they are the
    last layer of the model, which the file lacks.
    """
    wanted = model.state_dict()
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in (*reading.wrong, *reading.missing)))
    if reading.unknown or not owners or (reading.missing and (reading.wrong or owners != [_last_layer(model)])):
        return []
    outputs = set()
    for name in reading.wrong:
        there, here = reading.tensors[name], wanted[name]
        if there.ndim == 0 or there.shape[1:] != here.shape[1:] or not there.is_floating_point():
            return []
        outputs.add((len(there), len(here)))
    return owners if len(outputs) <= 1 else []


def _last_layer(model: nn.Module) -> str:
    return list(model.state_dict())[-1].rpartition(".")[0]
