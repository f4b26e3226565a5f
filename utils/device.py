"""Where training runs."""

import torch

from utils.errors import UserError


def find(name: str) -> torch.device:
    """The device of that name; "auto" is an accelerator where there is one, else the CPU."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"run.device: {name!r} is not to be had here ({str(error).splitlines()[0]})") from None
