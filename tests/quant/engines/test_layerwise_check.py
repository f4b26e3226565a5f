"""Each layer of whole trained nets on real images, against the simulation."""

import pytest
import torch

from tests.conftest import KERNELS
from tests.helpers import assert_layerwise_exact


@pytest.mark.parametrize("engine", KERNELS)
def test_whole_net_on_real_images(engine, net, simulated, digits32):
    """Forced equality of every operator on real images; and the same predictions, with an accuracy that means it."""
    _, images, labels = digits32
    model = assert_layerwise_exact(net, engine, images[:60])
    with torch.inference_mode():
        integer = model(images)
    assert (simulated.argmax(1) == labels).float().mean() >= 0.95
    assert (simulated.argmax(1) == integer.argmax(1)).float().mean() >= 0.995
    assert torch.equal(simulated, integer), "all logits are the same to the bit"
