"""The average of the weights over the last steps of training, which is often the better net (arXiv 1703.01780).

    a <- d a + (1 - d) w   after each step,    d = min(decay, (1 + t) / (10 + t)),    t: steps that w has been averaged

of all that the optimizer trains, steps and clips of quantizers included. Batch norm's statistics are those of w: with a
in its place they have to be found anew (qat/bn_reestimation.py).
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Average:
    """Attached to an optimizer, and saved and loaded as `average` in its state dict."""

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float):
        self.optimizer, self.decay = optimizer, decay
        self.kept: dict[Tensor, dict] = {}
        optimizer.register_step_post_hook(lambda *_: self.update())
        optimizer.register_state_dict_post_hook(lambda _, state: state | {"average": self.state()})
        optimizer.register_load_state_dict_pre_hook(lambda _, state: self._load(state))

    @torch.no_grad()
    def update(self) -> None:
        parameters = self._parameters()
        for p in parameters:
            if p not in self.kept:
                self.kept[p] = {"a": p.detach().clone(), "t": 0}
        kept = [self.kept[p] for p in parameters]
        shares = [1 - min(self.decay, (1 + k["t"]) / (10 + k["t"])) for k in kept]
        averages = [k["a"] for k in kept]
        moved = torch._foreach_sub(parameters, averages)
        torch._foreach_mul_(moved, shares)
        torch._foreach_add_(averages, moved)
        for k in kept:
            k["t"] += 1

    @contextlib.contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """With the averages as the model's weights; afterwards weights and buffers are what they were."""
        buffers = [buffer.clone() for buffer in model.buffers()]
        self.swap()
        try:
            yield
        finally:
            self.swap()
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)

    @torch.no_grad()
    def swap(self) -> None:
        """Averages for weights, and weights for averages."""
        for p, k in self.kept.items():
            before = p.detach().clone()
            p.copy_(k["a"])
            k["a"] = before

    def state(self) -> dict:
        """Plain tensors and numbers; parameters by their position in the optimizer."""
        return {i: self.kept[p] for i, p in enumerate(self._parameters()) if p in self.kept}

    def _load(self, state: dict) -> dict:
        parameters = self._parameters()
        self.kept = {
            parameters[i]: {"a": k["a"].to(parameters[i].device, copy=True), "t": k["t"]}
            for i, k in state["average"].items()
        }
        return {key: value for key, value in state.items() if key != "average"}

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]
