"""The moving average of the weights in training, which is often the better model (arXiv 1703.01780).

    a <- d a + (1 - d) w   after each step,    d = min(decay, (1 + t) / (10 + t)),    t: number of steps averaged so far

for all parameters that the optimizer trains, including the steps and clips of quantizers. The statistics of batch norm
belong to w. With a instead of w they must be re-estimated (quant/qat/bn_reestimation.py).
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Average:
    """Follows what an optimizer trains: `update` it after each step. It is saved and loaded with the optimizer, as
    `average` in its state dict."""

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float):
        self.optimizer, self.decay = optimizer, decay
        self.averages: dict[Tensor, dict] = {}
        optimizer.register_state_dict_post_hook(lambda _, state: state | {"average": self.state()})
        optimizer.register_load_state_dict_pre_hook(lambda _, state: self._load(state))

    @torch.no_grad()
    def update(self) -> None:
        """Update the average of every parameter, after an optimizer step and all that its hooks change."""
        parameters = self._parameters()
        for p in parameters:
            if p not in self.averages:
                self.averages[p] = {"a": p.detach().clone(), "t": 0}
        states = [self.averages[p] for p in parameters]
        rates = [1 - min(self.decay, (1 + k["t"]) / (10 + k["t"])) for k in states]
        averages = [k["a"] for k in states]
        changes = torch._foreach_sub(parameters, averages)
        torch._foreach_mul_(changes, rates)
        torch._foreach_add_(averages, changes)
        for k in states:
            k["t"] += 1

    @contextlib.contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """A context in which the model has the averages as its weights. On exit, weights and buffers are restored."""
        buffers = [buffer.clone() for buffer in model.buffers()]
        self.swap()
        try:
            yield
        finally:
            self.swap()
            for buffer, saved in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(saved)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their averages."""
        for p, k in self.averages.items():
            weight = p.detach().clone()
            p.copy_(k["a"])
            k["a"] = weight

    def state(self) -> dict:
        """{index of a parameter in the optimizer: {"a": average, "t": number of steps}}."""
        return {i: self.averages[p] for i, p in enumerate(self._parameters()) if p in self.averages}

    def _load(self, state: dict) -> dict:
        parameters = self._parameters()
        self.averages = {
            parameters[i]: {"a": k["a"].to(parameters[i].device, copy=True), "t": k["t"]}
            for i, k in state["average"].items()
        }
        return {key: value for key, value in state.items() if key != "average"}

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]
