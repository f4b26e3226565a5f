"""Count parameters and MACs (multiply-accumulates) of convolutions and linear layers. FLOPs are twice the MACs."""

import torch
from torch import nn

from utils.eval_mode import in_eval_mode

WITH_WEIGHTS = (nn.Conv2d, nn.Linear)


@torch.inference_mode()
def complexity(
    model: nn.Module, image_size: int, kinds: tuple[type[nn.Module], ...] = WITH_WEIGHTS, channels: int = 3
) -> tuple[int, int]:
    """(parameters, MACs) of a float model for one image [1, channels, image_size, image_size].

    kinds: the classes of the layers whose MACs count. The model is not changed.
    """
    macs = 0

    def count(module: nn.Conv2d | nn.Linear, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal macs
        macs += module.weight[0].numel() * output.numel()

    layers = [m for m in model.modules() if isinstance(m, kinds)]
    hooks = [m.register_forward_hook(count) for m in layers]
    try:
        device = next((p.device for p in model.parameters()), None)
        with in_eval_mode(model):
            model(torch.zeros(1, channels, image_size, image_size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(p.numel() for p in model.parameters()), macs
