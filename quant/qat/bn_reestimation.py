"""Batch norm re-estimation: measure the statistics of batch norm again, for the model at the end of training.

The running averages belong to earlier weights. At few bits, weights oscillate between two integers until the end, so
the averages fit neither of them (Nagel et al., arXiv 2203.11086; models with depthwise layers lose the most accuracy).
Here the batch norms of the trained model see training images again, augmented as in training, since other images have
other statistics. All quantizers stay as they are:

    mean, var  <-  the mean over batches of the batch statistics       (no momentum, as in arXiv 1803.05407)

Quantizers whose weight range follows the weights in training use the current weights. Activation ranges do not change.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from quant.graph.quant_layers import QuantLayer


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Set the running statistics of all batch norms from batches of images [N, 3, H, W].

    The model is in eval mode afterwards.
    """
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
