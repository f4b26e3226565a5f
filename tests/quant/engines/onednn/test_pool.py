"""Max-pooling of uint8, against torch's in float."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from quant.engines.onednn.pool import max_pooling
from quant.graph.node_view import NodeView

MAPS = torch.randint(0, 256, (2, 3, 13, 18), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
WINDOWS = [  # (kernel_size, stride, padding, dilation), as F.max_pool2d takes them
    *itertools.product([2, 3], [1, 2, 3], [0, 1], [1, 2]),
    (1, 2, 0, 1),
    (5, 1, 2, 1),
    ((3, 2), (1, 2), (1, 0), (2, 1)),
    (3, None, 1, 1),
]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_it_is_the_max_pooling_of_torch(window, ceil_mode):
    module = nn.MaxPool2d(*window, ceil_mode=ceil_mode)
    found = max_pooling(NodeView(fx.Graph().placeholder("x"), module))(MAPS)
    assert torch.equal(found, module(MAPS.float()).to(torch.uint8))


def test_arguments_of_a_function_that_are_left_out_have_its_defaults():
    graph = fx.Graph()
    node = graph.call_function(F.max_pool2d, (graph.placeholder("x"), 2), {"ceil_mode": True})
    assert torch.equal(max_pooling(NodeView(node))(MAPS), F.max_pool2d(MAPS.float(), 2, ceil_mode=True).to(torch.uint8))
