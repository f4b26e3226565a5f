"""Find the first module whose output is NaN or infinite."""

import torch
from torch import Tensor, nn


class _Found(Exception):
    """Ends the forward pass at the first such module."""


@torch.no_grad()
def first_not_finite(model: nn.Module, images: Tensor) -> str:
    """The name of the first module, in the order of computation, whose output is NaN or infinite, for a message.

    Adds a note if its weights are not finite either. "no module's: only the loss is not finite" if all outputs
    are finite.
    """

    def add_hook(name: str, module: nn.Module):
        def hook(module: nn.Module, inputs: tuple, output) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                raise _Found(name)

        return module.register_forward_hook(hook)

    hooks = [add_hook(name, module) for name, module in model.named_modules() if name]
    try:
        model(images)
    except _Found as found:
        name = str(found)
        weights = all(torch.isfinite(p).all() for p in model.get_submodule(name).parameters())
        return name if weights else f"{name}, whose weights are not finite either"
    finally:
        for hook in hooks:
            hook.remove()
    return "no module's: only the loss is not finite"
