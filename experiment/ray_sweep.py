"""A sweep on Ray: its cells are tasks, on this machine or on a cluster, and several are trained at a time.

Ray (https://docs.ray.io) gives each task the CPUs and GPUs that it asks for. The machines of a cluster share a file
system: a cell's worker writes the folder of its run there, as if this process trained it, and this process makes the
tables. Where a worker dies, its cell is given to another one, which continues from the last checkpoint.
"""

import contextlib
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from experiment import sweep
from experiment.settings import SweepSettings, TrainSettings
from experiment.sweep import Ended, Planned
from utils import device, distributed, files, memory
from utils.console import say
from utils.errors import UserError, first_line
from utils.importing import ROOT
from utils.runs.interrupt import StopRequest, defer_signals, handle_signals

ATTEMPTS = 4
"""How often a cell is begun whose worker dies each time."""
PATIENCE = 60.0
"""Seconds that a worker waits for the folder of its run. A worker whose machine Ray has lost lives on for a moment."""
SECONDS_TO_SAVE = 60.0
"""How long workers may take, when the sweep is stopped, to save a checkpoint."""
READ_ON_RAY = ("address", "cpus", "gpus")
"""Keys of the sweep section that have no effect elsewhere."""
SECONDS_BETWEEN_LOOKS = 0.5
"""Whether a signal has come."""
Train = Callable[[TrainSettings], None]


@dataclass(frozen=True)
class Task:
    """What a worker is to do: train(settings), for the cell at this place of a sweep.

    values: the settings in JSON. start: the folder from which their relative paths count. folder: the cell's.
    mark: a file in the folder of the sweep, by which a worker knows that this is the folder that the others see.
    """

    at: int
    values: str
    train: Train
    start: Path
    folder: Path
    mark: Path
    threads: int


def check(asked: SweepSettings) -> None:
    """Raise UserError for keys that would have no effect, and if Ray is not installed."""
    default = SweepSettings()
    for key in READ_ON_RAY:
        if asked.on != "ray" and getattr(asked, key) != getattr(default, key):
            raise UserError(f'sweep.{key} is read by "ray"; sweep.on is "{asked.on}"')
    if asked.on == "ray":
        _ray()
        if not asked.axes:
            raise UserError("sweep.on: nothing to run over; a single run is not trained on Ray")
        if distributed.world_size() > 1:
            raise UserError("sweep.on: Ray starts processes of its own; start train.py without torchrun")


def _ray() -> ModuleType:
    try:
        import ray  # here: optional, and half a second to import
    except ImportError:
        raise UserError("sweep.on: ray is not installed; pip install ray") from None
    return ray


def at_once(folder: Path, planned: Planned, train: Train, asked: SweepSettings) -> Generator[Ended]:
    """Train every cell of a sweep that is not finished with train(its settings), each in a task of Ray.

    folder: of the sweep. A line says when a cell begins, and when it ends; its other messages are in its run.log.
    """
    files.make_folder(folder, "run.dir")
    with _joined(asked) as ray, tempfile.NamedTemporaryFile(dir=folder, prefix=".sweep-") as mark:
        _check_resources(ray.nodes(), asked)
        remote = ray.remote(num_cpus=asked.cpus, num_gpus=asked.gpus, max_retries=0)(attempt)
        tasks = [_task(at, planned, train, folder, Path(mark.name), asked.cpus) for at in range(len(planned))]
        with defer_signals() as stop, _Running(ray, remote, tasks) as running:
            for at, news in running.news(stop):
                if isinstance(news, Ended):
                    yield news
                    news = "finished" if news.why is None else f"failed: {news.why}"
                say(f"{sweep.place(at, planned)}: {news}")


def _task(at: int, planned: Planned, train: Train, folder: Path, mark: Path, threads: int) -> Task:
    cell, settings = planned[at]
    values = settings.model_dump_json(exclude_unset=True)
    return Task(at, values, train, Path.cwd(), (folder / cell.name).absolute(), mark.absolute(), threads)


@contextlib.contextmanager
def _joined(asked: SweepSettings) -> Iterator[Any]:
    """Start Ray on this machine, or join the cluster. Yields the module ray. Raises UserError if there is none."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    _check_answers(asked.address)
    ray, paths = _ray(), [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        ray.init(
            address=asked.address or "local",
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"sweep.address: cannot join {asked.address or 'Ray'} ({first_line(error)})") from None
    try:
        with handle_signals():  # again: Ray has handlers of its own
            yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Raise UserError if the address is a machine's, HOST:PORT, that does not answer. Ray would try for ten minutes."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"sweep.address: {address} does not answer ({error})") from None


def _check_resources(machines: list[dict], asked: SweepSettings) -> None:
    """Raise UserError if no machine has what a cell asks for, which would wait for ever."""
    alive = [machine["Resources"] for machine in machines if machine["Alive"]]
    for key, name, wanted in (("cpus", "CPU", asked.cpus), ("gpus", "GPU", asked.gpus)):
        most = max((resources.get(name, 0) for resources in alive), default=0)
        if wanted > most:
            raise UserError(f"sweep.{key}: {wanted:g} for each run, and no machine of Ray's has more than {most:g}")


def attempt(task: Task) -> Iterator[str | Ended]:
    """Do a task in a worker. Yields how it begins, and how it ended.

    Raises UserError if this machine does not see the folder of the sweep.
    """
    host = socket.gethostname()
    if not task.mark.is_file():
        raise UserError(f"run.dir: {host} does not see {task.mark.parent}; all machines of a sweep have to share it")
    os.chdir(task.start)
    memory.keep_freed()
    torch.set_num_threads(task.threads)
    try:
        settings = TrainSettings.model_validate_json(task.values)
        done = sweep.is_finished(settings)
        yield "finished before" if done else f"begins on {host}, {device.find(settings.run.device)}"
        if not done:
            with files.locked(task.folder, PATIENCE):  # by then, a worker that Ray gave up has ended
                pass
            task.train(settings)
    except Exception as error:  # whatever it is, the other cells are to run
        yield Ended(task.at, sweep.report_failure(task.folder, error))
    else:
        yield Ended(task.at, None)


class _Running:
    """The tasks that run on Ray, or wait there. As a context manager, it stops what is left of them at the end.

    remote: `attempt`, as Ray calls it.
    """

    def __init__(self, ray: Any, remote: Any, tasks: list[Task]):
        self.ray, self.remote = ray, remote
        self.begun: Counter[int] = Counter()
        self.tasks: dict[Any, Task] = {}
        for task in tasks:
            self.begin(task)

    def begin(self, task: Task) -> None:
        self.begun[task.at] += 1
        self.tasks[self.remote.remote(task)] = task

    def news(self, stop: StopRequest) -> Iterator[tuple[int, str | Ended]]:
        """(place of the cell, what there is to say of it), until all have ended or a signal asks to stop.

        Raises UserError as `attempt` does.
        """
        while self.tasks and not stop.number:
            streams, _ = self.ray.wait(list(self.tasks), num_returns=1, timeout=SECONDS_BETWEEN_LOOKS)
            for stream in streams:
                task, message = self.tasks[stream], next(stream, None)
                if message is None:
                    del self.tasks[stream]
                else:
                    yield task.at, self.read(stream, message)

    def read(self, stream: Any, message: Any) -> str | Ended:
        """What a task says, which begins again if its worker died."""
        errors = self.ray.exceptions
        try:
            return self.ray.get(message)
        except errors.RayTaskError as error:
            raise error.cause from None
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            return self.begin_again(self.tasks.pop(stream), error)

    def begin_again(self, task: Task, error: Exception) -> str | Ended:
        """Give a task whose worker died to another one, unless that has happened too often."""
        if self.begun[task.at] == ATTEMPTS:
            return Ended(task.at, sweep.report_failure(task.folder, error))
        self.begin(task)
        return f"its worker died ({type(error).__name__}); another one continues"

    def __enter__(self) -> "_Running":
        return self

    def __exit__(self, *_) -> None:
        """Stop the tasks that still run: each saves a checkpoint and ends."""
        for stream in self.tasks:
            self.ray.cancel(stream)
        ends = [stream.completed() for stream in self.tasks]
        if ends:
            self.ray.wait(ends, num_returns=len(ends), timeout=SECONDS_TO_SAVE)
