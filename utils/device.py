"""Choose the device on which training runs."""

import torch

from utils import distributed
from utils.errors import UserError, first_line

STEPS_BETWEEN_READS = 32
"""Of a training on an accelerator, which stands still while a number is read from it."""


def steps_between_reads(device: torch.device) -> int:
    """After how many training steps numbers are read from the device."""
    return 1 if device.type == "cpu" else STEPS_BETWEEN_READS


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
