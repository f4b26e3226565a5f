"""One trial: a command in a folder of its own, which is disturbed and started again."""

import contextlib
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.soak import runs
from benchmarks.soak.processes import How, Program, Violation

START = 4.0
"""Seconds that a new Python takes to import torch."""


class Trial:
    """A kind of run in `folder`, and what it ends with undisturbed. sources: of runs.make_sources. choose: draws."""

    def __init__(self, name: str, folder: Path, sources: Path, choose: random.Random):
        self.kind, self.name, self.folder, self.sources, self.choose = runs.KINDS[name], name, folder, sources, choose
        self.notes: list[str] = []
        """What happened, for the report."""
        self.how, self.count = How(), 0
        self.kind.prepare(folder, sources)

    @property
    def run(self) -> Path:
        """The folder of the run, and of an export."""
        return self.folder / "runs" / "run" if self.kind.script == "train" else self.folder / "runs"

    @property
    def seconds(self) -> float:
        """That the undisturbed run takes."""
        return runs.undisturbed(self.name, self.how.threads, self.sources)[1]

    def files_of_undisturbed(self) -> list[Path]:
        """All files that the undisturbed run has left."""
        runs.undisturbed(self.name, self.how.threads, self.sources)
        return runs.files_of(runs.undisturbed_folder(self.name, self.how.threads, self.sources))

    def note(self, what: str) -> None:
        self.notes.append(what)

    def start(self, how: How | None = None, more: tuple[str, ...] = ()) -> Program:
        """The command, running; each fifth time by a new Python. more: further arguments, which may replace others."""
        if how is None:
            how = replace(self.how, fresh=self.how.fresh or self.choose.random() < 0.2)
        self.count += 1
        command = [*self.kind.command(self.folder), *more]
        return Program(self.kind.script, command, how, self.folder / f"said{self.count}")

    def moment(self, program: Program, latest: float = 1.1) -> float:
        """Wait until any moment of the run, up to a little after its end. Returns the seconds."""
        seconds = self.choose.uniform(0, latest * self.seconds + (START if program.how.fresh else 0))
        program.wait(seconds=seconds)
        return seconds

    def interrupt(self, more: tuple[str, ...] = ()) -> None:
        """Start the run, let it save a few times, so that there is one checkpoint before the last, and kill it."""
        wanted, last = self.choose.randint(2, 6), self.run / "last.pt"
        program, seen = self.start(more=more), set()

        def has_saved() -> bool:
            with contextlib.suppress(OSError):
                found = os.stat(last)
                seen.add((found.st_ino, found.st_mtime_ns))
            return len(seen) >= wanted

        program.wait(has_saved)
        program.send(9)
        program.end()
        if (self.run / "summary.json").exists():
            raise Violation(f"the run ended before it had saved {wanted} times")
        self.note(f"killed after {wanted} saves")

    def ends_identical(self, how: How | None = None, more: tuple[str, ...] = ()) -> str:
        """Run the command to its end: with the bits of the undisturbed run, or Violation."""
        code, line = self.start(how, more).end()
        if code:
            raise Violation(f"refused: {line}")
        return self.is_identical()

    def is_identical(self) -> str:
        expected, _ = runs.undisturbed(self.name, self.how.threads, self.sources)
        found = runs.difference(expected, runs.outcome(self.folder))
        if found:
            raise Violation(found)
        return "identical"

    def is_refused(self, cause: str) -> None:
        """Run the command: it ends in a line that names the cause (a regular expression), or Violation."""
        code, line = self.start().end()
        if code != 2:
            raise Violation(f"exit code {code} instead of a line about {cause}")
        self.note(line)
        if not re.search(cause, line):
            raise Violation(f"the line does not name the cause, {cause}: {line}")

    def is_refused_until(self, cause: str, mend: Callable[[], None]) -> str:
        """Refused with a line that names the cause, and identical once that is mended."""
        self.is_refused(cause)
        mend()
        self.ends_identical()
        return "one line, then identical"

    def end(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
