"""Learn the rounding of weights block by block, so that a block's quantized output is near that of the float model.

    min over V and r   E |y(x~; w~(V), r) - y|^2 + lambda f(V)                                lambda = 0.01

y is the output of the float block, after batch norm, activation and addition, for the inputs that it gets in the float
model. x~ are the inputs that the block gets in the quantized model. No labels are used.

`adaround` (Nagel et al., arXiv 2004.10568, asymmetric reconstruction) reconstructs single layers, with activations in
float. `brecq` (Li et al., arXiv 2102.05426) reconstructs blocks. It also scales the range of each activation in the
block by r, which is learned with LSQ's gradient (core/fake_quantize.py). QDrop (Wei et al., arXiv 2203.05740): in each
step, a random fraction `drop` of the activations, and of the block's input, stays in float.

Differs from the papers: batch norm is not folded. The error is not weighted by gradients, which would need labels.
There are hundreds of steps instead of twenty thousand, with a learning rate that is larger by the same factor. The
learning rate of r starts at 0.001 and falls as a cosine. Ranges that are shared through a concatenation, and those of 8
bits, are not scaled. A block of more than 12 layers is reconstructed layer by layer.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Target

from quant.core.fake_quantize import Rounding, rounded
from quant.core.observed import ObservedActivationQuantizer
from quant.core.quantizer import Quantizer
from quant.graph.node_view import target
from quant.graph.quant_layers import QuantLayer, QuantOperator
from quant.graph.views import layer_arguments, operator_arguments
from quant.ptq.adaround import SoftRounding, beta_at
from quant.ptq.blocks import Block, BlockRunner

BATCH = 4, 32
"""Images in a step, at least and at most. It is fewer where values are large: each image has many positions there."""
STEPS = 100, 500
"""Steps for each block if no number is given, at least and at most."""
CHEAP = 100_000_000
"""Multiply-accumulates of the largest net that gets the most steps. Those of a larger one take as long altogether."""
PENALTY = 0.01
"""lambda"""
MAX_LAYERS = 12
"""A block with more layers is reconstructed layer by layer."""
TRAVEL, MAX_LR = 20.0, 0.1
"""Adam's learning rate for V is TRAVEL / steps, at most MAX_LR: V can move as far as in the papers' 20,000 steps of
0.001."""
SCALE_LR = 1e-3
"""Adam's initial learning rate for r."""


class RangeScaling:
    """The learned factor r on the range, and therefore on the scale, of one activation quantizer."""

    def __init__(self, quantizer: ObservedActivationQuantizer):
        self.quantizer, self.grid = quantizer, quantizer.grid()
        self.r = torch.ones((), requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        """x fake-quantized with the scaled range."""
        s, grid = self.grid.scale * self.r.clamp(min=0.1), self.grid
        least, most = (grid.q_min - grid.zero_point).float(), (grid.q_max - grid.zero_point).float()
        scale = s.detach()
        return rounded(x, Rounding(scale, least, most, least * scale, most * scale, learned=(s,)))

    @torch.no_grad()
    def store(self) -> None:
        """Scale the range in the quantizer."""
        r = self.r.clamp(min=0.1)
        self.quantizer.low.mul_(r)
        self.quantizer.high.mul_(r)


class ReconstructionRunner(BlockRunner):
    """Runs one block with the roundings and ranges that are being learned.

    drop: the fraction of activation elements that stays in float at random; 1: all activations are in float.
    """

    def __init__(self, prepared: fx.GraphModule, block: Block, drop: float, generator: torch.Generator):
        super().__init__(prepared)
        self.drop, self.generator = drop, generator
        layers = {target(node): self.fetch_attr(target(node)) for node in block.layers}
        self.roundings = {
            name: SoftRounding(layer.weight_quantizer, layer.weight)
            for name, layer in layers.items()
            if layer.weight_quantizer is not None
        }
        scaled = [] if drop == 1 else [q for q in self._activation_quantizers(block) if _is_scaled(q)]
        self.scalings: dict[nn.Module, RangeScaling] = {quantizer: RangeScaling(quantizer) for quantizer in scaled}

    def _activation_quantizers(self, block: Block) -> list[ObservedActivationQuantizer]:
        modules = [self.fetch_attr(target(node)) for node in block.nodes if node.op == "call_module"]
        outputs = [m.output if isinstance(m, QuantLayer | QuantOperator) else m for m in modules]
        return [q for q in outputs if isinstance(q, ObservedActivationQuantizer)]

    def call_module(self, target: Target, args: tuple, kwargs: dict) -> Any:
        name = str(target)
        module = self.fetch_attr(name)
        if isinstance(module, QuantLayer):
            given = layer_arguments(args)
            rounding = self.roundings.get(name)
            weight = module.used_weight() if rounding is None else rounding.weight()
            return self.quantized(module.in_float(given.x, weight, given.norm), module.output)
        if isinstance(module, QuantOperator):
            of_operator = operator_arguments(args)
            return self.quantized(module.in_float(of_operator.values, of_operator.constants), module.output)
        if isinstance(module, Quantizer):
            return self.quantized(args[0], module)
        return super().call_module(target, args, kwargs)

    def quantized(self, x: Tensor, quantizer: Quantizer | None) -> Tensor:
        if quantizer is None or self.drop == 1:
            return x
        return self.mix(x, self.scalings.get(quantizer, quantizer)(x))

    def mix(self, in_float: Tensor, quantized: Tensor) -> Tensor:
        """A random fraction `drop` of the elements from the first tensor, the rest from the second."""
        if self.drop in (0, 1):
            return in_float if self.drop else quantized
        return torch.lerp(quantized, in_float, random_mask(in_float, self.drop, self.generator))

    def penalty(self, done: float) -> Tensor | float:
        """The sum of f(V) over all weights when the fraction `done` of the steps is done."""
        beta = beta_at(done)
        return 0.0 if beta is None else sum(rounding.penalty(beta) for rounding in self.roundings.values())


def random_mask(like: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """A tensor of ones and zeros, with the shape, dtype and strides of `like`, which must be dense in memory.

    fraction: of ones; rounded to a multiple of 1/256, because each element compares one random byte. bernoulli_ would
    take more time than a convolution.
    """
    ones = torch.empty_like(like)
    words = torch.empty(-(-ones.numel() // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    ones.as_strided((ones.numel(),), (1,)).copy_(
        words.view(torch.uint8)[: ones.numel()] < min(255, round(256 * fraction))
    )
    return ones


def reconstruction_units(block: Block, rounding: str | None) -> list[Block]:
    """What is reconstructed at once: the block (`brecq`, up to MAX_LAYERS layers), or each of its layers by itself."""
    at_once = rounding == "brecq" and len(block.layers) <= MAX_LAYERS
    return [block] if at_once else [block.single_layer(layer) for layer in block.layers]


def default_steps(macs: int) -> int:
    """Steps for each block or layer of a net with so many multiply-accumulates for an image."""
    least, most = STEPS
    return max(least, min(most, most * CHEAP // macs))


def reconstruct(
    runner: ReconstructionRunner,
    block: Block,
    in_float: Tensor,
    quantized: Tensor,
    target: Tensor,
    steps: int,
    batch: int,
    progress: Callable[[int], None],
) -> None:
    """Learn the roundings and ranges of `runner` for its block, and store them in the block's quantizers.

    in_float, quantized: the block's inputs in the float and in the quantized model, for all calibration images. target:
    its outputs in the float model. batch: images in a step. progress(1) is called after every step.
    """
    V = [rounding.V for rounding in runner.roundings.values()]
    r = [scaling.r for scaling in runner.scalings.values()]
    optimizer = torch.optim.Adam([{"params": V, "lr": min(MAX_LR, TRAVEL / steps)}, {"params": r, "lr": SCALE_LR}])
    for step in range(steps if V else 0):
        optimizer.param_groups[1]["lr"] = SCALE_LR * (1 + math.cos(math.pi * step / steps)) / 2
        at = torch.randint(len(target), (batch,), generator=runner.generator)
        x = quantized[at] if in_float is quantized else runner.mix(in_float[at], quantized[at])
        error = (runner.value(block, x) - target[at]).square().flatten(1).sum(1).mean() / _positions(target)
        loss = error + PENALTY * runner.penalty(step / steps)
        for parameter, gradient in zip(V + r, torch.autograd.grad(loss, V + r), strict=True):
            parameter.grad = gradient
        optimizer.step()
        progress(1)
    for rounding in runner.roundings.values():
        rounding.store()
    for scaling in runner.scalings.values():
        scaling.store()


def _positions(y: Tensor) -> int:
    """Height times width of y: the error is summed over channels, and averaged over positions and images."""
    return y[0, 0].numel()


def _is_scaled(quantizer: ObservedActivationQuantizer) -> bool:
    return quantizer.bits < 8 and quantizer.members == 1
