"""What train.py does: one run, or every run of a sweep."""

import contextlib
import functools
from collections.abc import Callable, Generator
from logging import LogRecord
from pathlib import Path

from experiment import cli, datasets, inputs, ray_sweep, sweep
from experiment.check import check
from experiment.report.accuracy_table import accuracy_table
from experiment.results import float_score
from experiment.run_folder import open_folder, run_folder
from experiment.session import Session
from experiment.settings import TrainSettings
from utils import config, device, distributed, files, memory
from utils.console import captured_messages, log_to, quiet, say
from utils.distributed import Processes
from utils.runs.folder import RunFolder, Start, check_no_single_run, read_summary, resume_hint
from utils.runs.interrupt import default_message, handle_signals

LESS_MEMORY = "a smaller data.batch_size takes less in training, fewer quant.calibration_images in ptq"


def main(arguments: list[str], description: str | None = __doc__) -> None:
    """Run train.py with this command line."""
    datasets.clear_cache()
    cli.main(arguments, description, "setting/train.json", TrainSettings, plan, sweep.find_conflict)


def plan(settings: TrainSettings, setting_file: str) -> cli.Job:
    """The run or sweep that the settings describe, checked. Raises UserError."""
    ray_sweep.check(settings.sweep)
    cells = sweep.cells(settings.sweep.axes)
    name = settings.run.name or config.as_name(Path(setting_file).stem)
    if not cells:
        checked = check(settings, name)
        return cli.Job(checked, lambda: train_alone(checked))
    runs = sweep.runs(settings, cells, lambda cell_settings, cell: check(cell_settings, f"{name}/{cell}"))
    named = settings.model_copy(update={"run": settings.run.model_copy(update={"name": name})})
    return cli.Job(named, lambda: train_all(named, runs))


def with_processes(settings: TrainSettings, run: Callable[[Processes], None]) -> None:
    """run(processes), in all processes that torchrun started; SIGTERM and Ctrl-C stop it between two steps."""
    with handle_signals(), distributed.joined(device.find(settings.run.device)) as processes:
        if not processes.is_main:
            quiet()
        run(processes)


def train_all(asked: TrainSettings, runs: sweep.Planned) -> None:
    """Train every run of a sweep, in this process or on Ray. asked: the settings of the sweep, with its name."""
    folder = asked.run.folder
    if asked.sweep.on == "ray":
        with handle_signals():
            gather(asked, runs, ray_sweep.at_once(folder, runs, train_alone, asked.sweep), is_main=True)
        return
    with_processes(
        asked,
        lambda processes: gather(asked, runs, sweep.one_by_one(folder, runs, train, processes), processes.is_main),
    )


def gather(asked: TrainSettings, runs: sweep.Planned, ends: Generator[sweep.Ended], is_main: bool) -> None:
    """Let the runs of a sweep end, and make its tables, in the folder of its name.

    Only the first process writes there; a lock keeps other programs out.
    """
    settings, folder = [own for _, own in runs], asked.run.folder
    if is_main:
        files.make_folder(folder.parent, "run.dir")
        check_no_single_run(folder)
    stopped = default_message(f"stopped; {resume_hint(folder, asked.run.resume)}")
    with stopped, files.locked(folder) if is_main else contextlib.nullcontext():
        title = sweep.title(settings, asked.run.name or "")
        sweep.gather(folder, runs, ends, lambda: float_score(settings), title, is_main)


def train_alone(settings: TrainSettings) -> None:
    """Train one run in this process."""
    with_processes(settings, functools.partial(train, settings))


def train(settings: TrainSettings, processes: Processes) -> None:
    """Train one run, from where its folder says it stands.

    What it reads is opened before the folder is touched. Only the first process writes there; a lock keeps other
    programs out.
    """
    path = run_folder(settings).path
    device.use_tf32(settings.run.tf32, processes.device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(default_message(f"stopped; {resume_hint(path, settings.run.resume)}"))
        if processes.is_main:
            files.make_folder(path.parent, "run.dir")
        with captured_messages() as said:
            dataset, found = inputs.load(settings, processes)
        folder = run_folder(settings, found)
        start = processes.from_main(lambda: _open(folder, settings, said, stack))
        if not start.finished:
            stack.enter_context(memory.explain_out_of_memory(LESS_MEMORY))
            Session(settings, path, processes, dataset, found, start.state).run()
            return
        say(f"{path} is finished; run.resume=never trains it again\n")
        if processes.is_main:
            say(accuracy_table(read_summary(path)))
            if not (path / "report.html").is_file():
                say(f"no report.html in {path}, as of older versions; evaluate.py {path} writes evaluation.html there")


def _open(folder: RunFolder, settings: TrainSettings, said: list[LogRecord], stack: contextlib.ExitStack) -> Start:
    """Prepare the folder, lock it, and log to its run.log, until the stack is left. said: messages before that."""
    stack.enter_context(files.locked(folder.path))
    start = open_folder(folder, settings)
    stack.enter_context(log_to(folder.path / "run.log", said))
    return start
