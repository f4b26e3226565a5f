"""Where a net's numbers stop being numbers."""

import torch
from torch import Tensor, nn


class _Found(Exception):
    pass


@torch.no_grad()
def first_not_finite(model: nn.Module, images: Tensor) -> str:
    """The first module, in the order of computation, whose output is not finite, and whether its weights are."""

    def look(name: str, module: nn.Module):
        def hook(module: nn.Module, inputs: tuple, output) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                raise _Found(name)

        return module.register_forward_hook(hook)

    hooks = [look(name, module) for name, module in model.named_modules() if name]
    try:
        model(images)
    except _Found as found:
        name = str(found)
        weights = all(torch.isfinite(p).all() for p in model.get_submodule(name).parameters())
        return name if weights else f"{name}, whose weights are not finite either"
    finally:
        for hook in hooks:
            hook.remove()
    return "none; the loss itself"
