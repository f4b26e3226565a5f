"""refine: what post-training quantization does behind calibration, walking through the blocks once, in order.

For all calibration images at once, the float net's values and the quantized net's are kept where a block begins: a
block is computed once for each, not once a step, and what it is brought near is what the float net has there.
Statistics are corrected before a block's roundings are learned, which then need not make up for them, and after.
"""

import time
from collections.abc import Iterable

import torch
from torch import Tensor, fx

from quant.graph.views import layer_view, set_enabled
from quant.methods.ptq import Options
from quant.ptq.bias_correction import correct, moments
from quant.ptq.blocks import Run, Section, blocks
from quant.ptq.brecq import Learning, learn, parts
from utils.console import Progress, say

MOST = 2**28
"""Elements of the largest value that is kept for all images, three or four of which are held: 1 GB each."""


def refine(prepared: fx.GraphModule, images: Iterable[Tensor], options: Options) -> None:
    """Learn roundings and correct statistics, as resolved options say, in a calibrated model, on batches of images."""
    if options.rounding == "nearest" and options.bias_correction == "none":
        return
    began, images = time.monotonic(), torch.cat(list(images))
    found = blocks(prepared.eval(), images[:2])
    if not found:
        return
    walk = _Walk(prepared, options)
    count = min(len(images), MOST // max(1, walk.largest(found, images[:1])))
    steps = options.rounding_steps or 0
    total = sum(1 + steps * len(parts(section, options.rounding)) for section in found)
    with Progress(total, "refining", "steps") as progress:
        walk.run(found, images[:count], progress)
    what = [] if options.rounding == "nearest" else [f"rounding learned ({options.rounding})"]
    what += [] if options.bias_correction == "none" else [f"statistics corrected ({options.bias_correction})"]
    layers = sum(len(section.layers) for section in found)
    split = sum(options.rounding == "brecq" and len(parts(section, "brecq")) > 1 for section in found)
    blocks_said = f"{len(found)} blocks" + (f" ({split} too large, and taken layer by layer)" if split else "")
    say(f"{' and '.join(what)}: {layers} layers in {blocks_said}, {count:,} images, {time.monotonic() - began:.0f} s")


class _Walk:
    def __init__(self, prepared: fx.GraphModule, options: Options):
        self.prepared, self.options, self.plain = prepared, options, Run(prepared)
        self.modules = dict(prepared.named_modules())
        self.generator = torch.Generator().manual_seed(0)

    def largest(self, found: list[Section], image: Tensor) -> int:
        """Elements of the largest value that a block begins or ends with, or a layer within, for an image."""
        self.plain.run(image)
        ends = [node for section in found for node in (section.entry, section.exit, *section.layers)]
        return max(self.plain.env[node].numel() for node in ends)

    def run(self, found: list[Section], images: Tensor, progress: Progress) -> None:
        in_float = quantized = images
        for section in found:
            aim = self.in_float(section, in_float)
            self.correct(section, in_float, quantized)
            if self.options.rounding != "nearest":
                self.learn(section, in_float, quantized, progress)
                self.correct(section, in_float, quantized)
            in_float, quantized = aim, self.plain.values(section, quantized)
            progress.add(1)

    def in_float(self, section: Section, x: Tensor) -> Tensor:
        set_enabled(self.prepared, False)
        value = self.plain.values(section, x)
        set_enabled(self.prepared, True)
        return value

    def learn(self, section: Section, in_float: Tensor, quantized: Tensor, progress: Progress) -> None:
        for part in parts(section, self.options.rounding):
            whole = part is section
            fed = in_float if whole else self.in_float(section.before(part.exit), in_float)
            x = quantized if whole else self.plain.values(section.before(part.exit), quantized)
            learning = Learning(self.prepared, part, (self.options.drop or 0.0) if whole else 1.0, self.generator)
            aim = self.in_float(part, fed)
            learn(learning, part, fed if whole else x, x, aim, self.options.rounding_steps, progress.add)

    def correct(self, section: Section, in_float: Tensor, quantized: Tensor) -> None:
        for node in section.layers:
            layer, _, _, norm = layer_view(self.modules, node)
            if layer.correction is None:
                continue
            before = section.before(node)
            fed, x = self.in_float(before, in_float), self.plain.values(before, quantized)
            set_enabled(self.prepared, False)
            aim = moments(layer, norm, fed)
            set_enabled(self.prepared, True)
            layer.correction.set(1, 0)
            correct(layer, self.options.bias_correction, aim, moments(layer, norm, x))
