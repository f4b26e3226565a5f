"""What can happen to a run. A fault disturbs a trial and returns how it ended, or raises Violation."""

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.soak import runs
from benchmarks.soak.image_faults import images_elsewhere, other_images, rename_class
from benchmarks.soak.processes import Violation
from benchmarks.soak.trial import Trial

ALL = tuple(runs.KINDS)
SAVING = tuple(name for name, kind in runs.KINDS.items() if kind.saves)
IMAGES = tuple(name for name, kind in runs.KINDS.items() if kind.reads_images)
BUSY = "another train.py is writing to"


def killed(trial: Trial) -> str:
    for _ in range(trial.choose.choice([1, 1, 2, 4])):
        program = trial.start()
        trial.note(f"SIGKILL after {trial.moment(program):.2f} s")
        program.send(signal.SIGKILL)
        program.end()
    return trial.ends_identical()


def killed_in_a_save(trial: Trial) -> str:
    program = trial.start()
    trial.moment(program, 0.6)
    program.wait(lambda: any(trial.run.glob(".*.pt")))
    program.send(signal.SIGKILL)
    program.end()
    trial.note(f"half written: {', '.join(path.name for path in trial.run.glob('.*.pt')) or 'nothing'}")
    return trial.ends_identical()


def stopped(trial: Trial) -> str:
    program, number = trial.start(), trial.choose.choice([signal.SIGTERM, signal.SIGINT])
    trial.note(f"signal {number} after {trial.moment(program):.2f} s")
    for _ in range(trial.choose.choice([1, 1, 2])):  # the second acts at once
        program.send(number)
        time.sleep(trial.choose.uniform(0, 0.05))
    trial.note(program.end()[1])
    return trial.ends_identical()


def file_size_limit(trial: Trial) -> str:
    """As a quota: no file may get larger. It may be any of those that a run writes."""
    largest = max(path.stat().st_size for path in trial.files_of_undisturbed())
    limit = round(4096 * (1.3 * largest / 4096) ** trial.choose.random())
    trial.note(f"no file above {limit} bytes")
    trial.note(trial.start(replace(trial.how, file_bytes=limit)).end()[1])
    return trial.ends_identical()


def full_disk(trial: Trial) -> str:
    every = sum(path.stat().st_size for path in trial.files_of_undisturbed())
    room = round(trial.choose.uniform(0.02, 1.3) * every / 4096) + 2
    with _disk_of(room, trial.folder / "runs") as enlarge:
        trial.note(f"a disk of {room} blocks of 4096 bytes")
        trial.note(trial.start().end()[1])
        enlarge()
        return trial.ends_identical()


@contextlib.contextmanager
def _disk_of(blocks: int, folder: Path) -> Iterator[Callable[[], None]]:
    """Mount a small disk on a folder; yields a function that enlarges it. It takes root to do so."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"nr_blocks={blocks}", "tmpfs", str(folder)], check=True)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,nr_blocks=100000", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


OTHERS = {
    "run.seed=7": r"run\.seed",
    "model.name=resnet32": r"model\.name",
    "optim.lr=0.03": r"optim\.lr",
    "data.limit=64": r"data\.limit",
}
"""Arguments that make it another run -> what is named then."""


def swapped_checkpoints(trial: Trial) -> str:
    """The checkpoints of another run take the place of this one's; then they are as they were."""
    trial.interrupt()
    other = Trial(trial.name, trial.folder / "other", trial.sources, trial.choose)
    cause = _interrupt_another(other)
    trial.note(f"swapped with a run of other {cause}")
    kept = {path: path.read_bytes() for path in trial.run.glob("*.pt")}
    for path in other.run.glob("*.pt"):
        shutil.copyfile(path, trial.run / path.name)

    def mend() -> None:
        for path, content in kept.items():
            path.write_bytes(content)

    return trial.is_refused_until(cause, mend)


def _interrupt_another(other: Trial) -> str:
    """Start another run and kill it. Returns what tells it apart."""
    if other.kind.reads_images and other.choose.random() < 0.5:
        rename_class(other)
        other.interrupt()
        return "wasp"
    argument = other.choose.choice(list(OTHERS))
    other.interrupt(more=(argument,))
    return OTHERS[argument]


def truncated(content: bytes, trial: Trial) -> bytes:
    return content[: trial.choose.randrange(len(content))]


def flipped(content: bytes, trial: Trial) -> bytes:
    at = trial.choose.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << trial.choose.randrange(8)]) + content[at + 1 :]


def zeroed(content: bytes, trial: Trial) -> bytes:
    at = trial.choose.randrange(len(content))
    return content[:at] + bytes(len(content[at : at + 4096])) + content[at + 4096 :]


DAMAGES = (truncated, flipped, zeroed)


def damage(path: Path, trial: Trial) -> None:
    how = trial.choose.choice(DAMAGES)
    trial.note(f"{path.name} {how.__name__}")
    path.write_bytes(how(path.read_bytes(), trial))


def damaged_checkpoint(trial: Trial) -> str:
    """The one before takes over."""
    trial.interrupt()
    damage(trial.run / trial.choose.choice(["last.pt", "last.pt", "last.prev.pt"]), trial)
    return trial.ends_identical()


def damaged_checkpoints(trial: Trial) -> str:
    """Both, or the best: one line, unless what was damaged does not matter; then they are as they were."""
    trial.interrupt()
    kept = {path: path.read_bytes() for path in trial.run.glob("*.pt")}
    for name in trial.choose.choice([["last.pt", "last.prev.pt"], ["best.pt"]]):
        if (trial.run / name).exists():
            damage(trial.run / name, trial)
    code, line = trial.start().end()
    if not code:
        return trial.is_identical()
    trial.note(line)
    if not any(path.name in line for path in kept):
        raise Violation(f"names no checkpoint: {line}")
    for path, content in kept.items():
        path.write_bytes(content)
    trial.ends_identical()
    return "one line, then identical"


def damaged_other_file(trial: Trial) -> str:
    """A continuation reads nothing but the checkpoints."""
    trial.interrupt()
    path = trial.choose.choice(sorted(path for path in trial.run.iterdir() if path.suffix != ".pt"))
    if trial.choose.random() < 0.3 or not path.stat().st_size:
        path.unlink()
        trial.note(f"{path.name} removed")
    else:
        damage(path, trial)
    return trial.ends_identical()


def two_at_once(trial: Trial) -> str:
    first = trial.start()
    trial.note(f"the second {trial.moment(first, trial.choose.choice([0, 0.5])):.2f} s later")
    second = trial.start()
    ends = [second.end(), first.end()]
    trial.note("; ".join(f"{code} {line}" for code, line in ends))
    if all(code for code, _ in ends) or any(code and BUSY not in line for code, line in ends):
        raise Violation(f"of two at once: {ends}")
    trial.is_identical()
    return "one refused, the other identical" if any(code for code, _ in ends) else "identical"


LOCALES = (
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"LANG": "C.UTF-8", "PYTHONUTF8": "0"},
    {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    {"TZ": "Asia/Kolkata", "PYTHONHASHSEED": "7"},
    {"COLUMNS": "20", "PYTHONUNBUFFERED": "1", "PYTHONOPTIMIZE": "1"},
)


def another_environment(trial: Trial) -> str:
    """Killed in one environment, continued in another."""
    trial.how = replace(trial.how, fresh=True)
    for environment in trial.choose.sample(LOCALES, 2):
        trial.note(" ".join("=".join(item) for item in environment.items()))
        program = trial.start(replace(trial.how, environment=environment))
        trial.moment(program)
        program.send(signal.SIGKILL)
        program.end()
    return trial.ends_identical(replace(trial.how, environment=trial.choose.choice(LOCALES)))


def another_folder(trial: Trial) -> str:
    """Killed in one working directory, continued in another."""
    program = trial.start()
    trial.moment(program)
    program.send(signal.SIGKILL)
    program.end()
    return trial.ends_identical(replace(trial.how, folder=trial.folder, fresh=True))


def two_threads(trial: Trial) -> str:
    """By new Pythons: a fork of a process that has started OpenMP hangs in its first parallel operator."""
    trial.how = replace(trial.how, threads=2, fresh=True)
    return killed(trial)


@dataclass(frozen=True)
class Fault:
    """disturb: the function. kinds: of runs that it can happen to. share: how often, relative to the others."""

    disturb: Callable[[Trial], str]
    kinds: tuple[str, ...] = ALL
    share: float = 1.0


FAULTS = {
    "SIGKILL": Fault(killed, share=3),
    "SIGKILL in a save": Fault(killed_in_a_save, SAVING),
    "SIGTERM, SIGINT": Fault(stopped, share=2),
    "file size limit": Fault(file_size_limit, share=1.5),
    "full disk": Fault(full_disk, share=1.5),
    "other images": Fault(other_images, IMAGES, share=2.5),
    "the same images elsewhere": Fault(images_elsewhere, IMAGES, share=0.5),
    "swapped checkpoints": Fault(swapped_checkpoints, SAVING),
    "damaged checkpoint": Fault(damaged_checkpoint, SAVING, share=1.5),
    "damaged checkpoints": Fault(damaged_checkpoints, SAVING),
    "damaged other file": Fault(damaged_other_file, SAVING),
    "two at once": Fault(two_at_once, share=1.5),
    "another environment": Fault(another_environment),
    "another working directory": Fault(another_folder, share=0.5),
    "two threads": Fault(two_threads, share=0.5),
}
