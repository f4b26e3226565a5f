"""GradBoost: noise added to each gradient element in its own direction (arXiv 2006.09679; the authors' code, clovaai).

For every element of a gradient g, with beta = 0.9 (Adam's beta_1),

    hi <- beta hi + (1 - beta) max(hi, |g|),    lo <- beta lo + (1 - beta) min(lo, |g|)
    S  =  (hi - lo) (1 - noise_decay)^n                                          n: boosted steps so far
    g  <- g + clip(sign(g) c |Laplace(0, S)|, -clip_by, clip_by)                 c: a fair coin, 0 or 1 (toss_coin)

While `warming_up`, as in StatAssist's float epochs, the averages are kept and nothing is added. The noise is drawn from
one generator on the parameters' device; |Laplace(0, S)| is S times an exponential variable.

mode "intended": hi and lo start at the first |g|.
mode "reference": what the authors' code does. hi and lo start at 0 and are divided by 1 - beta^t in place at each step
t, so that lo stays 0 and hi grows up to 77,756 fold: the noise is clip_by itself, on half of the elements, for some
hundred steps, until the decay has made up for it.

One hook before each step of torch's own optimizers. Adam adds its weight decay to the gradient after the hook; the
boost must see it before (the reference's order), so the hook uses g + decay p there.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from utils.sections import Section


class Options(Section):
    """Keys of the optim section that the boosted optimizers read: qsgd, qrmsprop, qadam and qadamw."""

    mode: Literal["intended", "reference"] = "intended"
    """GradBoost as its idea is, or as its authors' code does it; quant/methods/gradboost.py describes both."""
    clip_by: float = Field(1e-3, ge=0)
    """The largest noise added to an element of a gradient; 0: no limit."""
    noise_decay: float = Field(1e-2, ge=0, lt=1)
    """Share of the noise that each boosted step takes away."""
    toss_coin: bool = True
    """A coin for each element decides whether it is boosted."""


class GradBoost:
    """Attached to an optimizer, and saved and loaded as `gradboost` in its state dict.

    generator: of the parameters' device; None: torch's own.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        mode: str,
        clip_by: float,
        noise_decay: float,
        toss_coin: bool,
        generator: torch.Generator | None,
    ):
        self.mode, self.clip_by, self.noise_decay, self.toss_coin = mode, clip_by, noise_decay, toss_coin
        self.generator = generator
        self.warming_up = True
        self.coupled = type(optimizer) is torch.optim.Adam
        self.kept: dict[Tensor, dict] = {}
        optimizer.register_step_pre_hook(lambda *_: self.boost(optimizer))
        optimizer.register_state_dict_post_hook(lambda _, state: state | {"gradboost": self.state(optimizer)})
        optimizer.register_load_state_dict_pre_hook(lambda _, state: self._load(optimizer, state))
        optimizer.gradboost = self  # type: ignore[attr-defined]  # optimizers have no place for what is attached to them

    @torch.no_grad()
    def boost(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the averages of every parameter that has a gradient, and add the noise to the gradients."""
        for group in optimizer.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if moving:
                self._boost(moving, group)

    def _boost(self, parameters: list[Tensor], group: dict) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        seen = gradients
        if self.coupled and group["weight_decay"]:
            seen = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        sizes = torch._foreach_abs(seen)
        kept = [self._kept(p, size) for p, size in zip(parameters, sizes, strict=True)]
        hi, lo = [k["hi"] for k in kept], [k["lo"] for k in kept]
        beta = group.get("betas", (0.9,))[0]
        torch._foreach_lerp_(hi, torch._foreach_maximum(hi, sizes), 1 - beta)
        torch._foreach_lerp_(lo, torch._foreach_minimum(lo, sizes), 1 - beta)
        for k in kept:
            k["t"] += 1
        if self.mode == "reference":
            shares = [1 - beta ** k["t"] for k in kept]
            torch._foreach_div_(hi, shares)
            torch._foreach_div_(lo, shares)
        if not self.warming_up:
            for k in kept:
                k["n"] += 1
            noise = torch._foreach_sub(hi, lo)
            torch._foreach_mul_(noise, [(1 - self.noise_decay) ** k["n"] for k in kept])
            torch._foreach_mul_(noise, self._drawn(parameters))
            torch._foreach_mul_(noise, torch._foreach_sign(seen))
            if self.clip_by > 0:
                torch._foreach_clamp_max_(noise, self.clip_by)
                torch._foreach_clamp_min_(noise, -self.clip_by)
            torch._foreach_add_(gradients, noise)

    def _kept(self, parameter: Tensor, size: Tensor) -> dict:
        if parameter not in self.kept:
            start = torch.zeros_like(size) if self.mode == "reference" else size
            self.kept[parameter] = {"hi": start.clone(), "lo": start.clone(), "t": 0, "n": 0}
        return self.kept[parameter]

    def _drawn(self, parameters: list[Tensor]) -> list[Tensor]:
        """Exponential variables, half of them 0 if coins are tossed, shaped as the parameters."""
        count = sum(p.numel() for p in parameters)
        drawn = torch.empty(count, device=parameters[0].device).exponential_(generator=self.generator)
        if self.toss_coin:
            drawn *= torch.empty_like(drawn).bernoulli_(0.5, generator=self.generator)
        parts = drawn.split([p.numel() for p in parameters])
        return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]

    def state(self, optimizer: torch.optim.Optimizer) -> dict:
        """The averages and the generator's state, for the optimizer's state dict; parameters by their position."""
        kept = {i: self.kept[p] for i, p in enumerate(_parameters(optimizer)) if p in self.kept}
        generator_state = None if self.generator is None else self.generator.get_state()
        return {"mode": self.mode, "warming_up": self.warming_up, "kept": kept, "generator": generator_state}

    def _load(self, optimizer: torch.optim.Optimizer, state: dict) -> dict:
        ours, parameters = state.get("gradboost"), _parameters(optimizer)
        if ours is None or ours["mode"] != self.mode:
            raise ValueError(f"not the state of an optimizer with GradBoost in mode {self.mode}")
        self.warming_up = ours["warming_up"]
        if self.generator is not None and ours["generator"] is not None:
            self.generator.set_state(ours["generator"])
        self.kept = {
            parameters[i]: k | {key: k[key].to(parameters[i].device, copy=True) for key in ("hi", "lo")}
            for i, k in ours["kept"].items()
        }
        return {key: value for key, value in state.items() if key != "gradboost"}


def end_warm_up(optimizer: torch.optim.Optimizer) -> None:
    """Noise from the next step on, if the optimizer is boosted."""
    boost = getattr(optimizer, "gradboost", None)
    if boost is not None:
        boost.warming_up = False


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
