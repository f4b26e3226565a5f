"""The PTQ pipeline: what post-training quantization does after calibration.

It visits the blocks of the model once, in order. At the start of each block it keeps the values of the float model and
of the quantized model, for all calibration images at once. So every block is computed once per image, not once per
step, and its target is the float model's own output. Bias correction runs before a block's roundings are learned, which
then need not compensate for shifted statistics, and again afterwards.
"""

import time
from collections.abc import Iterable

import torch
from torch import Tensor, fx

from quant.core.options import PipelineOptions
from quant.graph.node_view import target as target_of
from quant.graph.views import layers, without_quantizers
from quant.ptq.bias_correction import Moments, apply_bias_correction, moments
from quant.ptq.blocks import Block, BlockRunner, blocks, images_at_once
from quant.ptq.brecq import BATCH, ReconstructionRunner, default_steps, reconstruct, reconstruction_units
from utils.console import Progress, say

MAX_ELEMENTS = 2**28
"""Elements of the largest value that is kept for all images, 1 GB. Three or four such values exist at a time."""


def run_ptq_pipeline(prepared: fx.GraphModule, images: Iterable[Tensor], options: PipelineOptions) -> None:
    """Learn roundings and correct biases in a calibrated model, as resolved options say.

    images: batches [N, 3, H, W]. Leaves out the last images if the values to keep would exceed MAX_ELEMENTS.
    """
    if options.rounding == "nearest" and options.bias_correction == "none":
        return
    began, images = time.monotonic(), torch.cat(list(images))
    found = blocks(prepared.eval(), images[:1])
    if not found:
        return
    pipeline = _Pipeline(prepared, options, found, images[:1])
    count = min(len(images), MAX_ELEMENTS // pipeline.largest)
    total = sum(1 + pipeline.steps * len(reconstruction_units(block, options.rounding)) for block in found)
    with Progress(total, "PTQ pipeline", "steps") as progress:
        pipeline.run(found, images[:count], progress)
    say(f"{_summary(found, options, pipeline.steps)}, {count:,} images, {time.monotonic() - began:.0f} s")


def _summary(found: list[Block], options: PipelineOptions, steps: int) -> str:
    done = [] if options.rounding == "nearest" else [f"rounding learned ({options.rounding}, {steps} steps)"]
    done += [] if options.bias_correction == "none" else [f"bias correction ({options.bias_correction})"]
    layers = sum(len(block.layers) for block in found)
    split = sum(options.rounding == "brecq" and len(reconstruction_units(block, "brecq")) > 1 for block in found)
    note = f" ({split} too large, reconstructed layer by layer)" if split else ""
    return f"{' and '.join(done)}: {layers} layers in {len(found)} blocks{note}"


class _Pipeline:
    """The steps of the pipeline for one block.

    in_float, quantized: the block's inputs in the float and quantized model. largest: elements, for one image, of the
    largest value at the start or end of a block or after a layer in it. steps: those of learned rounding.
    """

    def __init__(self, prepared: fx.GraphModule, options: PipelineOptions, found: list[Block], image: Tensor):
        self.prepared, self.options, self.runner = prepared, options, BlockRunner(prepared)
        self.layers = layers(prepared)
        self.generator = torch.Generator().manual_seed(0)
        self.runner.run(image)
        ends = [node for block in found for node in (block.entry, block.exit, *block.layers)]
        self.largest = max(self.runner.env[node].numel() for node in ends)
        self.steps = 0 if options.rounding == "nearest" else options.rounding_steps or default_steps(self.macs(found))

    def macs(self, found: list[Block]) -> int:
        """Multiply-accumulates of the layers for the image that ran last."""
        return sum(self._macs(node) for block in found for node in block.layers)

    def _macs(self, node: fx.Node) -> int:
        layer, y = self.layers[target_of(node)].layer, self.runner.env[node]
        return y.numel() // y.shape[-1 if layer.geometry.linear else 1] * layer.weight.numel()

    def run(self, found: list[Block], images: Tensor, progress: Progress) -> None:
        in_float = quantized = images
        for block in found:
            target, of_float = self.float_output(block, in_float), self.float_moments(block, in_float)
            self.correct_biases(block, of_float, quantized)
            if self.options.rounding != "nearest":
                self.reconstruct(block, in_float, quantized, progress)
                self.correct_biases(block, of_float, quantized)
            in_float, quantized = target, self.runner.values(block, quantized)
            progress.add(1)

    def float_output(self, block: Block, x: Tensor) -> Tensor:
        """The block's output with all quantizers disabled."""
        with without_quantizers(self.prepared):
            return self.runner.values(block, x)

    def reconstruct(self, block: Block, in_float: Tensor, quantized: Tensor, progress: Progress) -> None:
        for unit in reconstruction_units(block, self.options.rounding):
            whole_block = unit is block
            float_input = in_float if whole_block else self.float_output(block.up_to(unit.exit), in_float)
            x = quantized if whole_block else self.runner.values(block.up_to(unit.exit), quantized)
            runner = ReconstructionRunner(
                self.prepared, unit, (self.options.drop or 0.0) if whole_block else 1.0, self.generator
            )
            target = self.float_output(unit, float_input)
            mixed_with = float_input if whole_block else x
            batch = images_at_once(self.runner.largest(unit, x), *BATCH)
            reconstruct(runner, unit, mixed_with, x, target, self.steps, batch, progress.add)

    def float_moments(self, block: Block, in_float: Tensor) -> dict[fx.Node, Moments]:
        """The moments of the float model for each layer whose bias is corrected."""
        found = {}
        for node in block.layers:
            view = self.layers[target_of(node)]
            if view.layer.correction is not None:
                x = self.float_output(block.up_to(node), in_float)
                with without_quantizers(self.prepared):
                    found[node] = moments(view.layer, view.norm, x)
        return found

    def correct_biases(self, block: Block, of_float: dict[fx.Node, Moments], quantized: Tensor) -> None:
        for node, target in of_float.items():
            view = self.layers[target_of(node)]
            x = self.runner.values(block.up_to(node), quantized)
            if view.layer.correction is not None:
                view.layer.correction.set(1, 0)
            apply_bias_correction(view.layer, self.options.bias_correction, target, moments(view.layer, view.norm, x))
