"""Batch norm's statistics found anew, for the net as it is when training is over.

Its running averages are those of weights that have moved since, and at few bits weights hop between two integers until
the end, so that the averages belong to neither (Nagel et al., arXiv 2203.11086; depthwise nets lose most by it). Here
the norms of the net that trained see training images once more, cropped and mirrored as in training (of others the
statistics are others), with all quantizers as they are:

    mean, var  <-  the mean over batches of the batch's own        (momentum: none; arXiv 1803.05407 does so, too)

Ranges of weights follow the weights as they are now; those of activations rest.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from quant.graph.quant_layers import QuantLayer


@torch.no_grad()
def renorm(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Find all batch norms' running statistics anew on batches of images. The model is in eval afterwards."""
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.training = True
    for layer in model.modules():
        if isinstance(layer, QuantLayer):
            layer.training = True  # norms unfolded; its parts but for the weights' quantizer rest
            if layer.weight_quantizer is not None:
                layer.weight_quantizer.train()
    device = next(model.parameters()).device
    for batch in images:
        model(batch.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
