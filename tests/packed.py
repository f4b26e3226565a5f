"""Nets for tests of packed files, written and read."""

import torch
from torch import nn

import models
import quant
from quant.core.integer_layer import IntegerLayer
from tests.conftest import photos, spec, with_real_statistics
from tests.nets import plain

INFO = {"classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.25] * 3, "image_size": 32}
EVERY_METHOD = [
    {"method": "ptq", "weight_bits": 5, "act_bits": 3, "granularity": "per_tensor"},
    {
        "method": "ptq",
        "weight_bits": 3,
        "act_bits": 4,
        "rounding": "adaround",
        "rounding_steps": 3,
        "bias_correction": "norm",
    },
    {"method": "lsq", "weight_bits": 2, "act_bits": 2},
    {"method": "dorefa", "weight_bits": 1, "act_bits": 2},
    {"method": "dorefa", "weight_bits": 3, "act_bits": 4},
    {"method": "pact", "weight_bits": 2, "act_bits": 4},
    {"method": "pact", "weight_bits": 7, "act_bits": 8},
    {"method": "statassist", "weight_bits": 6, "act_bits": 8, "layers": {"layer2.*": {"weight_bits": 3}}},
]


def prepared_net(name: str, options: dict, keys: dict):
    """A net with real statistics and, by a step in train mode where ranges need one, real ranges."""
    torch.manual_seed(0)
    own = {"plain": lambda: plain(10), "everything": Everything}
    net = own[name]() if name in own else models.build(name, 10, 32, options)
    prepared = quant.prepare(with_real_statistics(net, photos(16, 32)), spec(**keys))
    with torch.no_grad():
        prepared.train()(photos(16, 32))
    if keys["method"] == "ptq":
        quant.calibrate(prepared, [photos(16, 32)])
        quant.run_ptq_pipeline(prepared, [photos(16, 32)], spec(**keys))
    return prepared.eval()


def exported(prepared, file):
    quant.export_packed(prepared, file, 32, INFO)
    return quant.load_packed(str(file))


def integer_layers(read) -> list[IntegerLayer]:
    """The integer layers of a model that was read, in their order."""
    operators = [getattr(node.target, "__self__", None) for node in read.graph.nodes]
    return [operator for operator in operators if isinstance(operator, IntegerLayer)]


class Everything(nn.Module):
    """Max-pool, concatenation, channel shuffle, gates, hard-swish, padding, and sizes asked of tensors."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Hardswish())
        self.pool, self.conv = nn.MaxPool2d(3, 2, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.gate, self.fc = nn.Conv2d(16, 16, 1), nn.Linear(64, 5)

    def forward(self, x):
        x = self.pool(self.stem(x))
        y = torch.relu(self.conv(x))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        left, right = y.chunk(2, dim=1)
        x = nn.functional.pad(torch.cat([x + y, right, left[:, :]], 1), (0, 0, 0, 0, 16, 16))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1))
