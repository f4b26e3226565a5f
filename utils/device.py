"""Choose the device on which training runs, how it computes, and bring batches to it."""

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from utils import distributed
from utils.errors import UserError, first_line

CPU = torch.device("cpu")
T = TypeVar("T")
STEPS_BETWEEN_READS = 32
"""Of a training on an accelerator, which stands still while a number is read from it."""


def steps_between_reads(device: torch.device) -> int:
    """After how many training steps numbers are read from the device."""
    return 1 if device.type == "cpu" else STEPS_BETWEEN_READS


def use_tf32(wanted: bool, device: torch.device) -> None:
    """Whether a CUDA device multiplies fp32 numbers in TensorFloat-32 from now on. Torch's default is yes in
    convolutions and no in matrix products. Raises UserError where a device of another kind is to do so."""
    if wanted and device.type != "cuda":
        raise UserError(f"run.tf32: only CUDA has TensorFloat-32, and this run trains on {device}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """While it lasts, sums of products of integers are exact where they stay below 2^24, in whatever order.

    Without cuDNN, whose algorithms may transform their inputs first (Winograd, Fourier), a convolution is a matrix
    product; without TF32, its factors keep their 24 bits.
    """
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.enabled, matmul.allow_tf32
    cudnn.enabled, matmul.allow_tf32 = False, False
    try:
        yield
    finally:
        cudnn.enabled, matmul.allow_tf32 = before


def find(name: str) -> torch.device:
    """The device with this name. "auto" is the accelerator if there is one, else the CPU.

    Under torchrun, each process of a machine gets a separate accelerator, unless the name has a number. Raises
    UserError if the device is not available, or if there are more processes than accelerators.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    else:
        try:
            found = torch.device(name)
            torch.empty(0, device=found).cpu()
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"run.device: {name!r} is not available here ({first_line(error)})") from None
    if found.type == "cpu":
        return found
    count = 1 if found.index is not None else torch.accelerator.device_count()
    number, processes = distributed.local_rank(), distributed.local_processes()
    if max(processes, number + 1) > count:
        raise UserError(
            f"run.device: {processes} processes on this machine, and {count} of {found.type} for them: start as many "
            "processes (torchrun --nproc-per-node), or set run.device=cpu"
        )
    if found.index is not None or count < 2:
        return found
    torch.accelerator.set_device_index(number)
    return torch.device(found.type, number)


def is_pinned_for(device: torch.device) -> bool:
    """Whether the device copies from pinned memory by itself, while the program goes on."""
    return device.type == "cuda"


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A copy out of pinned memory is not waited for."""
    return tensor.to(device, non_blocking=is_pinned_for(device))


def prefetched(batches: Iterator[T], device: torch.device) -> Iterator[T]:
    """The batches, each of which an accelerator is given to copy and to augment before the step on the previous one."""
    ahead = deque[T]()
    for batch in batches:
        ahead.append(batch)
        if len(ahead) > (device != CPU):
            yield ahead.popleft()
    yield from ahead
