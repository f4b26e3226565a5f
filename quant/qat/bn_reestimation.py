"""Batch norm re-estimation: running statistics measured again for the net as it is after training.

The running averages are of weights that have moved since. At few bits weights oscillate between two integers to the
end, and the averages belong to neither of them (Nagel et al., arXiv 2203.11086; depthwise nets suffer most). Here the
batch norms of the trained net see training images once more, cropped and mirrored as in training (images without that
have other statistics), with all quantizers as they are:

    mean, var  <-  the mean over batches of each batch's own        (no momentum, as in arXiv 1803.05407)

Weight ranges follow the weights as they are now; activation ranges do not change.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from quant.graph.quant_layers import QuantLayer


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Re-estimate the running statistics of all batch norms on batches of images. The model is in eval afterwards."""
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
            layer.training = True  # runs its batch norm unfolded; its submodules stay in eval
            if layer.weight_quantizer is not None:
                layer.weight_quantizer.train()
    device = next(model.parameters()).device
    for batch in images:
        model(batch.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
