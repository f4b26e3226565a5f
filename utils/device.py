"""Where training runs."""

import torch

from utils import distributed
from utils.errors import UserError


def find(name: str) -> torch.device:
    """The device of that name; "auto" is an accelerator where there is one, else the CPU.

    Under torchrun each process of a machine takes an accelerator of its own, unless the name has a number.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    else:
        try:
            found = torch.device(name)
            torch.empty(0, device=found).cpu()
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"run.device: {name!r} is not to be had here ({str(error).splitlines()[0]})") from None
    if found.type == "cpu" or found.index is not None or torch.accelerator.device_count() < 2:
        return found
    number = distributed.local_rank()
    if number >= torch.accelerator.device_count():
        raise UserError(f"run.device: process {number} of this machine, which has {torch.accelerator.device_count()}")
    torch.accelerator.set_device_index(number)
    return torch.device(found.type, number)
