"""The folder of a run, and where the run starts: from the beginning, or where an earlier one was interrupted.

A folder holds one experiment. A run with the same name and settings continues from last.pt, or from last.prev.pt if
last.pt is damaged. A finished run stays as it is. Other settings are refused while there is an interrupted run to
continue. When a new run takes over a folder, the earlier one is renamed: the same name with a number.
"""

import functools
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.console import say
from utils.errors import UserError
from utils.files import write_atomically
from utils.runs import checkpoint

LAST, PREVIOUS, BEST = "last.pt", "last.prev.pt", "best.pt"
SUMMARY, SETTING, INPUTS = "summary.json", "config.json", "inputs.json"
IGNORED_ON_RESUME = (
    *("note", "run.dir", "run.name", "run.resume", "run.checkpoint_minutes", "run.tensorboard"),
    *("data.workers", "data.on_error"),
)
"""Keys that may differ between a run and its continuation: the trained weights do not depend on them, or (on_error)
only where training would have failed."""
LOCATIONS = ("data.root", "model.weights", "quant.teacher")
"""Keys that say where inputs are, which may have moved."""
NORMALIZATION = "data.normalization"
"""In the inputs: mean and std of the images."""
MEASUREMENT_KEYS = ("run.engines",)
"""Keys of the final measurement: a finished run with other values of these is measured again, not trained again."""
OLD_NAMES = {"fake_quant": "simulated"}
"""Names in summary.json that older versions wrote, and what they are called now."""


@dataclass(frozen=True)
class Start:
    """Where a run starts. finished: nothing is left to do. state: the checkpoint to continue from, or None."""

    finished: bool = False
    state: dict | None = None


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    path: the folder. settings: the run's settings as JSON-able values. epochs: how many it trains.
    resume: "auto", "never", or the path of a checkpoint to continue from.
    inputs: what the run reads, as JSON-able values: its images, and digests of its checkpoints (experiment/inputs.py);
        compared with those of the run that is there, unless an older version wrote it, which kept none.
    filled_in: keys that the run itself fills in, so that they may differ from the settings it was started with.
    migrate: (settings, path of the file with them) -> the settings as this version writes them, or UserError.
    """

    path: Path
    settings: dict
    epochs: int
    resume: str = "auto"
    inputs: dict | None = None
    filled_in: tuple[str, ...] = ()
    migrate: Callable[[dict, str], dict] = lambda settings, path: settings

    @property
    def names_checkpoint(self) -> bool:
        """Whether run.resume is the path of a checkpoint."""
        return self.resume not in ("auto", "never")

    def find_start(self) -> Start:
        """Where this run starts. Raises UserError if the folder holds an interrupted run with other settings."""
        source: str | Path
        if self.names_checkpoint:
            state, source = _first_readable([Path(self.resume)]), self.resume
            if "optimizer" not in (state.get("training") or {}) and state["epoch"] < self.epochs:
                raise UserError(
                    f"run.resume: {self.resume} holds no training to continue; "
                    "to start from its weights set model.weights"
                )
        elif self.resume == "auto" and self.is_finished():
            return Start(finished=True)
        elif self.resume == "never" or not self._is_interrupted():
            return Start()
        else:
            state, source = _first_readable([self.path / LAST, self.path / PREVIOUS]), self.path
        stored = self.migrate(state["settings"], str(source))
        found = self._differences(stored, state.get("inputs"), MEASUREMENT_KEYS)
        if found:
            raise UserError(
                f"run.resume: {source} has {found}: "
                "run.name=... starts another run, in another folder; run.resume=never starts from scratch, in this one"
            )
        return Start(state=state)

    def is_finished(self, ignored: tuple[str, ...] = ()) -> bool:
        """Whether the folder holds the summary of a run with these settings that read these very inputs.

        ignored: further keys in which the settings may differ.
        """
        return (self.path / SUMMARY).is_file() and self._difference_there(ignored) == ""

    def _difference_there(self, ignored: tuple[str, ...] = ()) -> str | None:
        """How the run in the folder differs from this one; None if its files do not tell."""
        try:
            there = self.migrate(json.loads((self.path / SETTING).read_text(encoding="utf-8")), SETTING)
            inputs = self.path / INPUTS
            read = json.loads(inputs.read_text(encoding="utf-8")) if inputs.is_file() else None
            return self._differences(there, read, ignored)
        except (OSError, ValueError, UserError):
            return None

    def _differences(self, settings: dict, inputs: dict | None, ignored: tuple[str, ...]) -> str:
        """How the run with these settings and inputs differs from this one, in one line; "" if it does not.

        Where a file lies does not matter if it is known what is in it.
        """
        read: list[str] = []
        if inputs is not None and self.inputs is not None:
            known = any(key.startswith(f"{NORMALIZATION}.") for key, _ in flat(inputs))
            unknown = () if known else (NORMALIZATION,)  # an older version kept none
            ignored, read = (*ignored, *LOCATIONS), differences(inputs, self.inputs, unknown)
        set_otherwise = differences(settings, self.settings, self._ignored(ignored))
        found, kinds = [*set_otherwise, *read], {"settings": set_otherwise, "inputs": read}
        what = " and ".join(kind for kind, some in kinds.items() if some)
        return f"other {what} ({'; '.join(found[:3])}{'; ...' if found[3:] else ''})" if found else ""

    def _is_interrupted(self) -> bool:
        """Whether the folder holds a training to continue, or a finished one that is to be measured again."""
        if not any((self.path / name).is_file() for name in (LAST, PREVIOUS)):
            return False
        return not (self.path / SUMMARY).is_file() or self.is_finished(MEASUREMENT_KEYS)

    def _ignored(self, more: tuple[str, ...]) -> tuple[str, ...]:
        return *IGNORED_ON_RESUME, *more, *self.filled_in

    @property
    def resumes_from_elsewhere(self) -> bool:
        """Whether run.resume names a checkpoint in another folder."""
        return self.names_checkpoint and Path(self.resume).resolve().parent != self.path.resolve()

    def move_aside(self) -> None:
        """Rename a folder in which an earlier run left a checkpoint or a summary."""
        if any((self.path / name).is_file() for name in (LAST, PREVIOUS, BEST, SUMMARY)):
            names = (self.path.with_name(f"{self.path.name}.{i}") for i in itertools.count(1))
            free = next(path for path in names if not path.exists())
            difference = self._difference_there()
            self.path.rename(free)
            say(f"the run that was in {self.path} is in {free} now" + (f": it has {difference}" if difference else ""))

    def copy_checkpoint(self) -> None:
        """Copy the checkpoint that run.resume names, and the best.pt next to it, into the folder."""
        if not self.names_checkpoint:
            return
        for there, here, keep in (
            (Path(self.resume), self.path / LAST, self.path / PREVIOUS),
            (Path(self.resume).with_name(BEST), self.path / BEST, None),
        ):
            if there.is_file() and there.resolve() != here.resolve():
                write_atomically(here, functools.partial(shutil.copyfile, there), keep)


def effective_resume(resume: str) -> str:
    """The value of run.resume that applies now: when torchrun restarts a run, the run continues whatever it says."""
    return "auto" if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) else resume


def resume_hint(folder: Path, resume: str) -> str:
    """How the user continues a run in `folder` that was started with this run.resume."""
    return f"the same command{'' if resume == 'auto' else ', without run.resume,'} continues from {folder}"


def _first_readable(candidates: list[Path]) -> dict:
    """The first checkpoint that can be read. Damaged ones before it are reported. Raises UserError if none can be."""
    refused = None
    for path in [path for path in candidates if path.is_file()] or candidates[:1]:
        try:
            state = checkpoint.load(str(path))
        except UserError as error:
            refused = refused or error
            continue
        if refused:
            say(f"{refused}; continuing from {path.name}")
        return state
    raise UserError(f"{refused}; run.resume=never starts from scratch") from None


def read_summary(folder: Path) -> dict:
    """The results of the finished run in this folder. Raises UserError if they cannot be read."""
    path = folder / SUMMARY
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; run.resume=never trains again") from None
    if not isinstance(found, dict) or not isinstance(found.get("accuracy"), dict):
        raise UserError(f"{path}: not what train.py writes there; run.resume=never trains again")
    return found | {"accuracy": {OLD_NAMES.get(name, name): score for name, score in found["accuracy"].items()}}


def check_no_single_run(folder: Path) -> None:
    """Raise UserError if the folder of a sweep already holds a single run."""
    if (folder / SETTING).is_file():
        raise UserError(f"run.name: {folder} is a single run's; give the sweep another name")


def check_no_sweep(folder: Path) -> None:
    """Raise UserError if the folder of a single run already holds the cells of a sweep."""
    if any(folder.glob(f"*/{SETTING}")):
        raise UserError(f"run.name: {folder} holds the runs of a sweep; give this one another name")


def differences(there: dict, here: dict, ignored: tuple[str, ...] = ()) -> list[str]:
    """'key: value there, value here' for each dotted key in which two settings differ. ignored: keys to skip."""
    old, new = dict(flat(there)), dict(flat(here))
    keys = [key for key in {**new, **old} if not f"{key}.".startswith(tuple(f"{name}." for name in ignored))]
    return [
        f"{key}: {json.dumps(old.get(key))} there, {json.dumps(new.get(key))} here"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def flat(values: dict, before: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested values."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", list(value) if isinstance(value, tuple) else value
