"""OpenVINO compiles and runs a model in a process of its own first, since its compiler has ended whole processes.

Run as a script, it reads (ONNX file, shape, threads), pickled, from its standard input and answers each with a byte. It
imports nothing of this project: torch takes seconds.
"""

import atexit
import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

_running: dict[int, Any] = {}
"""The process that tries models, a Popen, by the id of its parent: a forked process has its own."""


def request(core: Any, model: Any, shape: Sequence[int], threads: int) -> Any:
    """An InferRequest of an openvino.Model, compiled for images of this shape."""
    model.reshape({"images": [*shape]})
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(model, "CPU", options).create_infer_request()


def check_survived(file: bytes, shape: Sequence[int], threads: int) -> None:
    """Raise RuntimeError if OpenVINO ends the process that compiles and runs this file. Errors that it raises are not
    looked at: they are raised here, too."""
    process = _running.get(os.getpid()) or _start()
    try:
        pickle.dump((file, [*shape], threads), process.stdin)
        process.stdin.flush()
        survived = process.stdout.read(1)
    except OSError:  # a pipe that nobody reads
        survived = b""
    if not survived:
        raise RuntimeError(f"it ends the process that compiles it ({_cause(stop())})")


def _start() -> Any:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    started = subprocess.Popen([sys.executable, __file__], **pipes, start_new_session=True)  # Ctrl-C is not for it
    _running[os.getpid()] = started
    return started


@atexit.register
def stop() -> int:
    """End the process that tries models, if there is one; returns its exit code."""
    process = _running.pop(os.getpid(), None)
    if process is None:
        return 0
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was not sent
            pipe.close()
    return process.wait()


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def serve() -> None:
    import numpy
    import openvino

    core = openvino.Core()
    while True:
        try:
            file, shape, threads = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        with contextlib.suppress(Exception):  # the caller meets it, too
            request(core, core.read_model(model=file), shape, threads).infer(
                {"images": numpy.zeros(shape, numpy.float32)}
            )
        sys.stdout.buffer.write(b".")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
