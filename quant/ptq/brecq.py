"""Learned rounding, block by block: a block's quantized output is brought near the float net's, without labels.

    min over V and r   E |y(x~; w~(V), r) - y|^2 + lambda f(V)                                lambda = 0.01

y is the output of the float block, behind batch norm, activation and addition, on what the float net feeds it; x~ what
the quantized net feeds it. adaround takes each layer for a block, its activations in float (Nagel et al., arXiv
2004.10568, asymmetric reconstruction). brecq takes blocks (Li et al., arXiv 2102.05426) and scales the range of each
activation within by r, with LSQ's gradient (core/fake_quantize.py). QDrop (Wei et al., arXiv 2203.05740): each step
leaves a random share `drop` of the activations, and of the input, in float.

Differs from the papers: batch norm is not folded; the error is not weighted by gradients, which would take labels;
there are hundreds of steps in place of twenty thousand, with a rate as much larger; r starts with a rate of 0.001,
which falls as a cosine; ranges that concatenations share, and those of 8 bits, are not scaled. A block of more than 12
layers is taken by the layer.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, fx

from quant.core.fake_quantize import Rounding, rounded
from quant.core.observed import ObservedActivationQuantizer
from quant.core.quantizer import Quantizer
from quant.graph.quant_layers import QuantLayer, QuantOperator
from quant.ptq.adaround import SoftRounding, beta_at
from quant.ptq.blocks import Run, Section

BATCH = 32
PENALTY = 0.01
LARGEST = 12
"""Layers of a block that is taken as one."""
TRAVEL, LARGEST_RATE = 20.0, 0.1
"""Adam's rate for V: how far V can move in all steps together, as by the papers' 0.001 in 20,000; and the largest."""
SCALE_RATE = 1e-3


class Scaling:
    """r of one activation quantizer: its range, and with it its scale, times r."""

    def __init__(self, quantizer: ObservedActivationQuantizer):
        self.quantizer, self.grid = quantizer, quantizer.grid()
        self.r = torch.ones((), requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        s, grid = self.grid.scale * self.r.clamp(min=0.1), self.grid
        least, most = (grid.q_min - grid.zero_point).float(), (grid.q_max - grid.zero_point).float()
        scale = s.detach()
        return rounded(x, Rounding(scale, least, most, least * scale, most * scale, learned=(s,)))

    @torch.no_grad()
    def settle(self) -> None:
        r = self.r.clamp(min=0.1)
        self.quantizer.low.mul_(r)
        self.quantizer.high.mul_(r)


class Learning(Run):
    """Computes a section with weights and ranges that are being learned, and a share of its activations in float."""

    def __init__(self, prepared: fx.GraphModule, section: Section, drop: float, generator: torch.Generator):
        super().__init__(prepared)
        self.drop, self.generator = drop, generator
        layers = {node.target: self.fetch_attr(node.target) for node in section.layers}
        self.roundings = {
            name: SoftRounding(layer.weight_quantizer, layer.weight)
            for name, layer in layers.items()
            if layer.weight_quantizer is not None
        }
        self.scalings = {} if drop == 1 else {q: Scaling(q) for q in self._activations(section) if _scales(q)}

    def _activations(self, section: Section) -> list[Quantizer]:
        modules = [self.fetch_attr(node.target) for node in section.nodes if node.op == "call_module"]
        inside = [m.output if isinstance(m, QuantLayer | QuantOperator) else m for m in modules]
        return [q for q in inside if isinstance(q, ObservedActivationQuantizer)]

    def call_module(self, target: str, args: tuple, kwargs: dict):
        module = self.fetch_attr(target)
        if isinstance(module, QuantLayer):
            x, _source, norm = args
            learned = self.roundings.get(target)
            weight = module.used_weight() if learned is None else learned.weight()
            return self.quantized(module.in_float(x, weight, norm), module.output)
        if isinstance(module, QuantOperator):
            values, _sources = args
            return self.quantized(module.in_float(*values), module.output)
        if isinstance(module, Quantizer):
            return self.quantized(args[0], module)
        return super().call_module(target, args, kwargs)

    def quantized(self, x: Tensor, quantizer: Quantizer | None) -> Tensor:
        if quantizer is None or self.drop == 1:
            return x
        return self.mixed(x, self.scalings.get(quantizer, quantizer)(x))

    def mixed(self, in_float: Tensor, quantized: Tensor) -> Tensor:
        """`drop` of the elements from the one, the rest from the other."""
        if self.drop in (0, 1):
            return in_float if self.drop else quantized
        return torch.lerp(quantized, in_float, drawn(in_float, self.drop, self.generator))

    def penalty(self, done: float) -> Tensor | float:
        """f(V) of all weights after this share of the steps."""
        beta = beta_at(done)
        return 0.0 if beta is None else sum(rounding.penalty(beta) for rounding in self.roundings.values())


def drawn(like: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """1 in that share of places (in 256ths), 0 in the others, laid out like a dense tensor.

    A random byte for each: bernoulli_ takes more time than a convolution.
    """
    ones = torch.empty_like(like)
    words = torch.empty(-(-ones.numel() // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    ones.as_strided((ones.numel(),), (1,)).copy_(words.view(torch.uint8)[: ones.numel()] < min(255, round(256 * share)))
    return ones


def parts(section: Section, spec_rounding: str) -> list[Section]:
    """What is learned at once of a block."""
    whole = spec_rounding == "brecq" and len(section.layers) <= LARGEST
    return [section] if whole else [section.alone(layer) for layer in section.layers]


def learn(
    learning: Learning,
    section: Section,
    in_float: Tensor,
    quantized: Tensor,
    target: Tensor,
    steps: int,
    progress: Callable[[int], None],
) -> None:
    """Learn what a section is to learn from its input in the float and in the quantized net and its float output."""
    V = [rounding.V for rounding in learning.roundings.values()]
    r = [scaling.r for scaling in learning.scalings.values()]
    optimizer = torch.optim.Adam(
        [{"params": V, "lr": min(LARGEST_RATE, TRAVEL / steps)}, {"params": r, "lr": SCALE_RATE}]
    )
    for step in range(steps if V else 0):
        optimizer.param_groups[1]["lr"] = SCALE_RATE * (1 + math.cos(math.pi * step / steps)) / 2
        at = torch.randint(len(target), (BATCH,), generator=learning.generator)
        x = quantized[at] if in_float is quantized else learning.mixed(in_float[at], quantized[at])
        error = (learning.value(section, x) - target[at]).square().flatten(1).sum(1).mean() / _places(target)
        loss = error + PENALTY * learning.penalty(step / steps)
        for parameter, gradient in zip(V + r, torch.autograd.grad(loss, V + r), strict=True):
            parameter.grad = gradient
        optimizer.step()
        progress(1)
    for learned in (*learning.roundings.values(), *learning.scalings.values()):
        learned.settle()


def _places(y: Tensor) -> int:
    """Height times width: the error is summed over channels, and averaged over places and images."""
    return y[0, 0].numel()


def _scales(quantizer: ObservedActivationQuantizer) -> bool:
    return quantizer.bits < 8 and quantizer.members == 1
