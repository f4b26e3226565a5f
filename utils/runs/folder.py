"""Where a run begins: anew, or where the one in its folder was interrupted.

A folder holds one experiment. The same name and setting go on from last.pt, or where that is damaged from
last.prev.pt; a finished run stays as it is; another setting is refused while there is something to go on with. Whatever
makes room for a new run is kept beside it, under the same name and a number.
"""

import functools
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.runs import checkpoint
from utils.config import TrainSettings
from utils.errors import UserError
from utils.files import write_whole
from utils.console import say

LAST, PREVIOUS, BEST = "last.pt", "last.prev.pt", "best.pt"
SUMMARY, SETTING = "summary.json", "config.json"
ASIDE = (
    *("note", "run.dir", "run.name", "run.resume", "run.checkpoint_minutes", "run.tensorboard"),
    *("data.workers", "data.on_error"),
)
"""Keys that may differ between a run and its continuation: what is trained does not depend on them, or (on_error) only
where it could not be trained at all."""
MEASURED = ("run.engines",)
"""And these: a finished run that is asked for other engines is measured anew, not trained."""


@dataclass(frozen=True)
class Start:
    """finished: there is nothing to do. state: the checkpoint to go on from, or None to begin anew."""

    finished: bool = False
    state: dict | None = None


def request(asked: str) -> str:
    """run.resume as it counts now: where torchrun starts a run again, that goes on, however it began."""
    return "auto" if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) else asked


def how(folder: Path, asked: str) -> str:
    """What goes on with a run in `folder` that was started with this run.resume."""
    return f"the same command{'' if asked == 'auto' else ', without run.resume,'} goes on from {folder}"


def find(folder: Path, settings: TrainSettings, asked: str) -> Start:
    """Where this run begins. Raises UserError if its folder holds an interrupted run of another setting."""
    if asked not in ("auto", "never"):
        state, source = _readable([Path(asked)]), asked
        if "optimizer" not in (state.get("training") or {}) and state["epoch"] < settings.run.epochs:
            raise UserError(f"run.resume: {asked} holds no training to go on with; model.weights takes weights")
    elif asked == "auto" and finished(folder, settings):
        return Start(finished=True)
    elif asked == "never" or not _is_interrupted(folder, settings):
        return Start()
    else:
        state, source = _readable([folder / LAST, folder / PREVIOUS]), folder
    there = differences(state["settings"], settings.model_dump(), (*ASIDE, *MEASURED, *_chosen(settings)))
    if there:
        raise UserError(
            f"run.resume: {source} is of another setting ({'; '.join(there[:3])}{'; ...' if there[3:] else ''}): "
            "run.name=... begins another beside it, run.resume=never in its place"
        )
    return Start(state=state)


def _is_interrupted(folder: Path, settings: TrainSettings) -> bool:
    """Whether the folder holds a training to go on with, or one that is finished and asked for other engines."""
    if not any((folder / name).is_file() for name in (LAST, PREVIOUS)):
        return False
    return not (folder / SUMMARY).is_file() or finished(folder, settings, MEASURED)


def _readable(candidates: list[Path]) -> dict:
    """The first checkpoint that can be read; what is wrong with one before it is said. Raises UserError if none can."""
    refused = None
    for path in [path for path in candidates if path.is_file()] or candidates[:1]:
        try:
            state, _ = checkpoint.load(str(path))
        except UserError as error:
            refused = refused or error
            continue
        if refused:
            say(f"{refused}; going on from {path.name}")
        return state
    raise UserError(f"{refused}; run.resume=never begins anew") from None


def finished(folder: Path, settings: TrainSettings, aside: tuple[str, ...] = ()) -> bool:
    """Whether the folder holds the summary of a run with this very setting, and from these very checkpoints.

    aside: keys in which it may differ.
    """
    sources = [settings.model.weights, settings.quant.teacher]
    try:
        there = json.loads((folder / SETTING).read_text())
        same = not differences(there, json.loads(settings.model_dump_json()), (*ASIDE, *aside, *_chosen(settings)))
        newest = max((Path(source).stat().st_mtime for source in sources if source), default=0)
        return same and (folder / SUMMARY).stat().st_mtime > newest
    except (OSError, ValueError):
        return False


def _chosen(settings: TrainSettings) -> tuple[str, ...]:
    """Keys that a run of this setting fills in itself: with all else the same, they would be."""
    return ("quant.layers",) if settings.quant.layers == "auto" else ()


def is_elsewhere(folder: Path, asked: str) -> bool:
    """Whether run.resume names a checkpoint that is not in the run's own folder."""
    return asked not in ("auto", "never") and Path(asked).resolve().parent != folder.resolve()


def bring(folder: Path, asked: str) -> None:
    """Copy the checkpoint that run.resume names, and the best.pt beside it, to where a run's own are."""
    for there, here, before in (
        (Path(asked), folder / LAST, folder / PREVIOUS),
        (Path(asked).with_name(BEST), folder / BEST, None),
    ):
        if asked not in ("auto", "never") and there.is_file() and there.resolve() != here.resolve():
            write_whole(here, functools.partial(shutil.copyfile, there), before)


def summary(folder: Path) -> dict:
    """What was measured when the run of this folder was finished. Raises UserError where it cannot be read."""
    path = folder / SUMMARY
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; run.resume=never trains anew") from None
    if not isinstance(found, dict) or not isinstance(found.get("accuracy"), dict):
        raise UserError(f"{path}: not what train.py writes there; run.resume=never trains anew")
    return found


def check_is_sweeps(folder: Path) -> None:
    """Raise UserError if a single run has its files in the folder that a sweep is to have."""
    if (folder / SETTING).is_file():
        raise UserError(f"run.name: {folder} is a single run's; give the sweep another name")


def check_is_runs(folder: Path) -> None:
    """Raise UserError if a sweep has its cells in the folder that a single run is to have."""
    if any(folder.glob(f"*/{SETTING}")):
        raise UserError(f"run.name: {folder} holds the runs of a sweep; give this one another name")


def make_room(folder: Path) -> None:
    """Rename what an earlier run has left in the folder, if it got as far as a checkpoint."""
    if any((folder / name).is_file() for name in (LAST, PREVIOUS, BEST, SUMMARY)):
        beside = next(path for i in itertools.count(1) if not (path := folder.with_name(f"{folder.name}.{i}")).exists())
        folder.rename(beside)
        say(f"the run that was in {folder} is in {beside} now")


def differences(there: dict, here: dict, aside: tuple[str, ...] = ()) -> list[str]:
    """'key: value there, value here' of each dotted key in which two settings differ."""
    old, new = dict(_flat(there)), dict(_flat(here))
    keys = [key for key in {**new, **old} if not f"{key}.".startswith(tuple(f"{name}." for name in aside))]
    return [
        f"{key}: {json.dumps(old.get(key))} there, {json.dumps(new.get(key))} here"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _flat(values: dict, before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", list(value) if isinstance(value, tuple) else value
