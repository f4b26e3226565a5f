"""Run train.py or evaluate.py in a process of its own, disturb it, and see how it ended."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from experiment import evaluation, training
from utils import errors

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = {"train": training.main, "evaluate": evaluation.main}
LONGEST = 180.0
"""Seconds after which a process hangs: the longest here takes ten on a core of its own."""

GRACE = 15.0
"""Seconds in which the processes that a process started have to end after it."""


class Violation(Exception):
    """A run that neither ended with the bits of the undisturbed one nor in one line that names the cause."""


@dataclass(frozen=True)
class How:
    """How a process is started.

    fresh: by a new Python; else as a fork of this process, which has imported torch already. environment: more
    variables, for a new Python. folder: the working directory. threads: of torch. file_bytes: no file may get larger;
    what is printed is then lost.
    """

    fresh: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path = ROOT
    threads: int = 1
    file_bytes: int | None = None


class Fork:
    """A fork of this process that calls a function, whose exit code it ends with; used as subprocess.Popen is."""

    def __init__(self, call: Callable[[], int]):
        self.pid, self.returncode = os.fork(), None
        if self.pid == 0:
            os.setsid()
            os._exit(_exit_code(call))

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def _exit_code(call: Callable[[], int]) -> int:
    """What Python would end with."""
    try:
        return call()
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()


class Program:
    """A script with its arguments, running. What it prints is kept in two files that begin with `name`."""

    def __init__(self, script: str, arguments: list[str], how: How, name: Path):
        self.out, self.err = name.with_name(f"{name.name}.out"), name.with_name(f"{name.name}.err")
        self.how, self.signals = how, list[int]()
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(open(self.out if how.file_bytes is None else os.devnull, "wb"))
            err = stack.enter_context(open(self.err, "wb"))
            limit = _limited(how.file_bytes)
            if not how.fresh:
                self.process: Fork | subprocess.Popen = Fork(
                    lambda: _called(script, arguments, how, out.fileno(), err.fileno(), limit)
                )
                return
            command = [sys.executable, str(ROOT / f"{script}.py"), *arguments]
            variables = os.environ | {"OMP_NUM_THREADS": str(how.threads)} | how.environment
            self.process = subprocess.Popen(
                command, cwd=how.folder, env=variables, stdout=out, stderr=err, preexec_fn=limit, start_new_session=True
            )

    def is_running(self) -> bool:
        return self.process.poll() is None

    def send(self, number: int) -> None:
        if self.is_running():
            self.signals.append(number)
            os.kill(self.process.pid, number)

    def wait(self, condition: Callable[[], bool] = lambda: False, seconds: float = LONGEST) -> None:
        """Until the condition holds, the time is over or the process has ended."""
        end = time.monotonic() + seconds
        while self.is_running() and not condition() and time.monotonic() < end:
            time.sleep(0.0002)

    def end(self) -> tuple[int, str]:
        """(exit code, the line on stderr) once it has ended. Raises Violation if it ends otherwise than it should.

        It should end with 0 and nothing on stderr; with 2 and one line; or by one of the signals that it was sent.
        """
        self.wait()
        if self.is_running():
            self.send(signal.SIGKILL)
            self.wait()
            raise Violation(f"hangs: {LONGEST:.0f} s; {self._last_words()}")
        self._check_alone()
        code, said = self.process.poll(), self.err.read_text(errors="replace").splitlines()
        codes = {0: 0, 2: 1} | {128 + number: 1 for number in self.signals}  # -> lines on stderr
        if signal.SIGKILL in self.signals and code == -signal.SIGKILL:
            return code, ""
        if code not in codes and code in self._early_codes() and not any("job.run()" in line for line in said):
            return code, ""
        if code not in codes or len(said) != codes[code]:
            raise Violation(f"exit code {code}, {len(said)} lines on stderr: {self._last_words()}")
        return code, said[0] if said else ""

    def _early_codes(self) -> set[int]:
        """Exit codes of a program that had not begun its job when a signal came: as Python ends, with a traceback."""
        interrupted = {1} if signal.SIGINT in self.signals and not self.how.fresh else set()
        return {-number for number in self.signals} | interrupted

    def _check_alone(self) -> None:
        """Raise Violation if processes that it started do not end with it, and end them."""
        end = time.monotonic() + GRACE
        while left := living(self.process.pid):
            if time.monotonic() > end:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise Violation(f"left {len(left)} processes behind")
            time.sleep(0.1)

    def _last_words(self) -> str:
        said = [*self.out.read_text(errors="replace").splitlines()[-1:]] if self.out.exists() else []
        return " / ".join([*said, *self.err.read_text(errors="replace").splitlines()[-3:]])


def living(session: int) -> list[int]:
    """The processes of a session that have not ended, as Linux lists them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own = path.read_text(errors="replace").rpartition(")")[2].split()[:4]
            found += [int(path.parent.name)] if int(own) == session and state != "Z" else []
    return found


def _limited(file_bytes: int | None) -> Callable[[], None] | None:
    if file_bytes is None:
        return None
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))


def _called(script: str, arguments: list[str], how: How, out: int, err: int, limit: Callable[[], None] | None) -> int:
    """Run a script in this process, with its output in these files."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.chdir(how.folder)
    torch.set_num_threads(how.threads)
    sys.argv = [f"{script}.py", *arguments]
    if limit:
        limit()
    errors.run(SCRIPTS[script])
    return 0
