"""Compare the float model, the simulation and every engine on the same images: accuracy, agreement and size."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from quant.analysis.predictions import Predictions, Recorder
from quant.core.batch_norm import BatchNorm
from quant.core.quantizer import ActivationQuantizer, Quantizer
from quant.engines.base import EngineFailed, IntegerModel
from quant.graph.node_view import target
from quant.graph.quant_layers import Correction, QuantLayer
from quant.graph.views import layers, operator_view, quantizers, without_quantizers
from utils.errors import UserError
from utils.metrics import Score
from utils.runs import tensor_file


class Comparison(NamedTuple):
    """What `compare` finds: its table of numbers, and what each model predicts for each image."""

    result: dict
    predictions: Predictions


@torch.inference_mode()
def compare(prepared: nn.Module, engines: dict[str, IntegerModel], batches: Iterable, with_float: bool) -> Comparison:
    """Measure a prepared model and its integer models over batches of (images, labels).

    engines: integer models by engine name. with_float: also measure the model with all quantizers disabled. A model
    without quantizers is only measured in float. The result has

        accuracy         {name: {"top1", "top5" (percent), "loss"}}, name: "float", "simulated" or an engine
        agreement        {engine: percent of images with the same top-1 class as the simulation}
        bit_equal        {engine: percent of images whose logits equal the simulation's bit for bit}
        size_mb          {"float" or engine: decimal MB of the tensors to store}
        size_mb_at_bits  decimal MB if weights are stored at their own number of bits
        failed           {engine: why it cannot run the model}, only where there is one; nothing else names it

    Raises UserError if the logits of the float model or of the simulation are not finite.
    """
    quantized = bool(quantizers(prepared))
    with_float = with_float or not quantized
    names = [*(["float"] if with_float else []), *(["simulated"] if quantized else []), *engines]
    scores, recorder = {name: Score() for name in names}, Recorder(names)
    same, equal = dict.fromkeys(engines, 0), dict.fromkeys(engines, 0)
    engines, failed = dict(engines), {}

    def add(name: str, logits: Tensor, labels: Tensor) -> None:
        recorder.add(name, logits, scores[name].add(logits, labels))

    for images, labels in batches:
        recorder.labels.append(labels)
        if with_float:
            with without_quantizers(prepared):
                add("float", prepared(images), labels)
        if not quantized:
            continue
        simulated = prepared(images)
        add("simulated", simulated, labels)
        for name, model in list(engines.items()):
            try:
                logits = model(images)
            except EngineFailed as error:
                failed[name] = str(error)
                for table in (engines, scores, same, equal, recorder.found):
                    del table[name]
                continue
            add(name, logits, labels)
            same[name] += int((logits.argmax(1) == simulated.argmax(1)).sum())
            equal[name] += int((logits == simulated).all(1).sum())
    _check_finite({name: score for name, score in scores.items() if name not in engines})
    images_seen = max(next(iter(scores.values())).images, 1)
    result = {
        "accuracy": {name: score.summary() for name, score in scores.items()},
        "agreement": {name: 100 * count / images_seen for name, count in same.items()},
        "bit_equal": {name: 100 * count / images_seen for name, count in equal.items()},
        "size_mb": {"float": tensor_file.megabytes(float_state(prepared))}
        | {name: tensor_file.megabytes(model.stored()) for name, model in engines.items()},
        "size_mb_at_bits": megabytes_at_bits(prepared),
        **({"failed": failed} if failed else {}),
    }
    return Comparison(result, recorder.predictions())


def _check_finite(scores: dict[str, Score]) -> None:
    for name, score in scores.items():
        if not math.isfinite(score.loss_sum):
            raise UserError(
                f"{name}: logits that are not finite, on {score.images} images: its weights or their ranges are too "
                "large, as after a training that diverged; take an earlier checkpoint, or train with a smaller optim.lr"
            )


def float_state(prepared: nn.Module) -> dict[str, Tensor]:
    """The state dict of the prepared model without the tensors of quantizers and bias corrections."""
    added = tuple(f"{name}." for name, module in prepared.named_modules() if isinstance(module, Quantizer | Correction))
    return {name: value for name, value in prepared.state_dict().items() if not name.startswith(added)}


def megabytes_at_bits(model: nn.Module) -> float:
    """Decimal MB of a model whose weights are stored at their own number of bits, and everything else as now.

    Scales and biases of the layers count; see layer_bytes.
    """
    counted = {part for module in model.modules() if isinstance(module, Quantizer) for part in module.modules()}
    size, weights = 0, set()
    for view in layers(model).values() if isinstance(model, fx.GraphModule) else ():
        size += 0 if view.layer.weight in weights else layer_bytes(view.layer, view.source, view.norm)
        counted |= {*view.layer.modules(), *([] if view.norm is None else [view.norm])}
        weights |= {view.layer.weight, view.layer.bias}
    for norm in norms_in_integers(model) if isinstance(model, fx.GraphModule) else ():
        size += 8 * norm.num_features
        counted.add(norm)
    for module in set(model.modules()) - counted:
        own = {*module.parameters(recurse=False), *module.buffers(recurse=False)} - weights
        size += sum(tensor.nbytes for tensor in own if tensor.is_floating_point())
    return size / 1e6


def norms_in_integers(prepared: fx.GraphModule) -> list[BatchNorm]:
    """The batch norms that are integer operators by themselves, each a gain and a shift for each channel."""
    modules = dict(prepared.named_modules())
    views = [view for node in prepared.graph.nodes if (view := operator_view(modules, node)) is not None]
    integers = [view for view in views if view.operator.runs_in_integers(view.sources)]
    constants = [modules.get(target(node)) for view in integers for node in view.constants if node.op == "get_attr"]
    return [norm for norm in constants if isinstance(norm, BatchNorm)]


def layer_bytes(layer: QuantLayer, source: ActivationQuantizer | None, norm: BatchNorm | None) -> int:
    """Bytes of a layer: ceil(n bits / 8) for n weights, and 4 for each scale and each bias.

    source: the quantizer of its input, or None. Unquantized weights take 4 bytes each. A layer that runs in float also
    stores the tensors of its batch norm.
    """
    channels, quantizer = len(layer.weight), layer.weight_quantizer
    size = 4 * layer.weight.numel()
    if quantizer is not None:
        size = -(-layer.weight.numel() * quantizer.bits // 8) + 4 * channels
    if layer.runs_in_integers(source):
        return size + 4 * channels
    frozen = layer.frozen(norm)
    tensors = [frozen.bias, *([] if frozen.norm is None else frozen.norm.state_dict().values())]
    return size + sum(4 * tensor.numel() for tensor in tensors if tensor is not None and tensor.is_floating_point())
