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
from quant.ptq.bias_correction import apply_bias_correction, moments
from quant.ptq.blocks import Block, BlockRunner, blocks
from quant.ptq.brecq import ReconstructionRunner, reconstruct, reconstruction_units
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
    found = blocks(prepared.eval(), images[:2])
    if not found:
        return
    pipeline = _Pipeline(prepared, options)
    count = min(len(images), MAX_ELEMENTS // max(1, pipeline.max_elements(found, images[:1])))
    steps = options.rounding_steps or 0
    total = sum(1 + steps * len(reconstruction_units(block, options.rounding)) for block in found)
    with Progress(total, "PTQ pipeline", "steps") as progress:
        pipeline.run(found, images[:count], progress)
    say(f"{_summary(found, options)}, {count:,} images, {time.monotonic() - began:.0f} s")


def _summary(found: list[Block], options: PipelineOptions) -> str:
    done = [] if options.rounding == "nearest" else [f"rounding learned ({options.rounding})"]
    done += [] if options.bias_correction == "none" else [f"bias correction ({options.bias_correction})"]
    layers = sum(len(block.layers) for block in found)
    split = sum(options.rounding == "brecq" and len(reconstruction_units(block, "brecq")) > 1 for block in found)
    note = f" ({split} too large, reconstructed layer by layer)" if split else ""
    return f"{' and '.join(done)}: {layers} layers in {len(found)} blocks{note}"


class _Pipeline:
    """The steps of the pipeline for one block.

    in_float, quantized: the block's inputs in the float and quantized model.
    """

    def __init__(self, prepared: fx.GraphModule, options: PipelineOptions):
        self.prepared, self.options, self.runner = prepared, options, BlockRunner(prepared)
        self.layers = layers(prepared)
        self.generator = torch.Generator().manual_seed(0)

    def max_elements(self, found: list[Block], image: Tensor) -> int:
        """Elements, for one image, of the largest value at the start or end of a block or after a layer in it."""
        self.runner.run(image)
        ends = [node for block in found for node in (block.entry, block.exit, *block.layers)]
        return max(self.runner.env[node].numel() for node in ends)

    def run(self, found: list[Block], images: Tensor, progress: Progress) -> None:
        in_float = quantized = images
        for block in found:
            target = self.float_output(block, in_float)
            self.correct_biases(block, in_float, quantized)
            if self.options.rounding != "nearest":
                self.reconstruct(block, in_float, quantized, progress)
                self.correct_biases(block, in_float, quantized)
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
            reconstruct(runner, unit, mixed_with, x, target, self.options.rounding_steps or 0, progress.add)

    def correct_biases(self, block: Block, in_float: Tensor, quantized: Tensor) -> None:
        for node in block.layers:
            view = self.layers[target_of(node)]
            layer, norm = view.layer, view.norm
            if layer.correction is None:
                continue
            before = block.up_to(node)
            float_input, x = self.float_output(before, in_float), self.runner.values(before, quantized)
            with without_quantizers(self.prepared):
                target = moments(layer, norm, float_input)
            layer.correction.set(1, 0)
            apply_bias_correction(layer, self.options.bias_correction, target, moments(layer, norm, x))
