"""Transition rate scheduling (Lee et al., ICCV 2025, arXiv 2404.19248): schedule how many integer weights change.

Near the end of low-bit training, weights crowd around the points where they round to another integer, so that many
integers change at each step however small the learning rate. Here the share of integers that change in a step, the
transition rate, is what is scheduled. In every layer of N weights,

    k  =  1 / N  sum_i [w_d(i) != w_d'(i)]     w_d, w_d': the integers before and after the last step         equation 5
    K  <-  m K + (1 - m) k,     m = 0.99                                                                   equation 10
    U  <-  max(0, U + eta (R - K))                                                                         equation 11
    w  <-  w - U g                                                                                         equation 12

g is the optimizer's direction: the momentum of SGD, the normalized momentum of Adam. U, the layer's learning rate,
starts at the optimizer's own and so does eta. The target R starts at lambda sqrt(b) for weights of b bits and decays as
the learning rate does. Everything else that the optimizer trains keeps the ordinary learning rate.

With U = eta u, no eta is left: u <- max(0, u + R - K), which starts at 1, or during a warm-up below it, and

    w  <-  w + u (w' - w),     w': where the optimizer takes w at the constant rate eta

for every optimizer whose step is proportional to its learning rate. Learned steps of weights are fixed once they are
initialized (`fix_steps`), as in the paper: else integers would change without their weights.

Differs from the paper: weights of 8 bits, which first and last layers have here and which are float there, keep the
ordinary learning rate; ranges that a quantizer takes from its weights (StatAssist, DoReFa, SAWB) still follow them;
R also rises with the learning rate's warm-up; decoupled weight decay is part of g.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quant.core.quantizer import WeightQuantizer
from quant.graph.quant_layers import QuantLayer
from utils.errors import UserError

LAMBDA = 0.005
"""lambda of the least error at 2 bits in the paper's ablation."""
M = 0.99
"""m: how much of K a step keeps."""
MOST_BITS = 7
"""The widest weights whose transitions are scheduled."""
OWN = "transition_rate"
"""The key that marks parameter groups whose learning rate is not the ordinary one."""


def fix_steps(prepared: nn.Module) -> None:
    """Exclude what weight quantizers learn (LSQ's steps) from training."""
    for module in prepared.modules():
        if isinstance(module, WeightQuantizer):
            module.requires_grad_(False)


class TransitionRate:
    """Takes the weights of `model` that have at most MOST_BITS bits as far as their layer's U asks, at each step.

    optimizer: trains them already; they move to parameter groups of their own. lam: lambda. eta: the peak learning
    rate. decay(): the learning rate now, as a share of the peak. K and u, fp32 [layers], are saved and loaded with the
    optimizer, as `transition_rate` in its state dict. No step reads a value back from the device.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, lam: float, eta: float, decay: Callable[[], float]
    ):
        self.optimizer, self.eta, self.decay = optimizer, eta, decay
        self.layers = scheduled_layers(model)
        if not self.layers:
            raise UserError(
                f"quant.transition_rate: no layer's weights have {MOST_BITS} bits or fewer; others are not scheduled"
            )
        bits = torch.tensor([float(quantizer.bits) for _, quantizer in self.layers])
        device = next(model.parameters()).device
        self.R = (lam * bits.sqrt()).to(device)
        self.K, self.u = torch.zeros_like(self.R), torch.full_like(self.R, decay())
        move_to_own_groups(optimizer, [w for w, _ in self.layers])
        self.before: list[Tensor] = []
        optimizer.register_step_pre_hook(lambda *_: self.before_step())
        optimizer.register_step_post_hook(lambda *_: self.after_step())
        optimizer.register_state_dict_post_hook(lambda _, state: state | {"transition_rate": self.state()})
        optimizer.register_load_state_dict_pre_hook(lambda _, state: self._load(state))

    @torch.no_grad()
    def before_step(self) -> None:
        """Update u, and let the optimizer step at the rate eta."""
        self.u = (self.u + self.decay() * self.R - self.K).clamp(min=0)
        self.before = [w.clone() for w, _ in self.layers]
        for group in self.optimizer.param_groups:
            if group.get(OWN):
                group["lr"] = self.eta

    @torch.no_grad()
    def after_step(self) -> None:
        """Take the weights the share u of the way that the optimizer took them, and update K."""
        for (w, _), before, u in zip(self.layers, self.before, self.u, strict=True):
            w.copy_(torch.lerp(before, w, u.to(w.dtype)))
        k = [share_changed(q, before, w) for (w, q), before in zip(self.layers, self.before, strict=True)]
        self.K = M * self.K + (1 - M) * torch.stack(k)
        self.before = []

    def state(self) -> dict[str, Tensor]:
        return {"K": self.K.clone(), "u": self.u.clone()}

    def _load(self, state: dict) -> dict:
        ours = state["transition_rate"]
        self.K, self.u = (ours[key].to(self.R.device, copy=True) for key in ("K", "u"))
        return {key: value for key, value in state.items() if key != "transition_rate"}


def scheduled_layers(model: nn.Module) -> list[tuple[Tensor, WeightQuantizer]]:
    """(weight, its quantizer) for each weight that is scheduled, once where layers share it."""
    layers = {module.weight: module for module in model.modules() if isinstance(module, QuantLayer)}
    quantized = [(w, layer.weight_quantizer) for w, layer in layers.items() if layer.weight_quantizer is not None]
    return [(w, quantizer) for w, quantizer in quantized if quantizer.bits <= MOST_BITS and w.requires_grad]


def move_to_own_groups(optimizer: torch.optim.Optimizer, weights: list[Tensor]) -> None:
    """Split the optimizer's parameter groups: `weights` come last, in groups that are marked by the key OWN."""
    chosen, others, own = {id(w) for w in weights}, [], []
    for group in optimizer.param_groups:
        others.append(group | {"params": [p for p in group["params"] if id(p) not in chosen]})
        own.append(group | {"params": [p for p in group["params"] if id(p) in chosen], OWN: True})
    optimizer.param_groups[:] = [group for group in others + own if group["params"]]


def share_changed(quantizer: WeightQuantizer, before: Tensor, after: Tensor) -> Tensor:
    """k: the share of integers that differ between two weights, fp32 []."""
    return (quantizer.to_int(before.float()) != quantizer.to_int(after.float())).float().mean()
