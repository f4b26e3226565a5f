"""A model for 32 x 32 images that trains fast on a CPU: few layers of wide 3 x 3 convolutions.

In the spirit of the fast CIFAR-10 recipes (Page's ResNet-9, DAWNBench; Jordan, arXiv 2404.00498): CPUs run wide
convolutions near their peak speed, while narrow ones, norms and activations wait for memory. It uses ReLU instead of
GELU. Batch norm and ReLU come before the pools, so that the integer model can fuse them with the convolution.

| part   | layers                                        | map     |
| stem   | 3 x 3 to 32                                   | 32 x 32 |
| group1 | 3 x 3 to 64, max-pool, 3 x 3 to 64            | 16 x 16 |
| group2 | 3 x 3 to 128, max-pool, 3 x 3 to 128          |   8 x 8 |
| group3 | 3 x 3 to 128, max-pool, 3 x 3 to 128          |   4 x 4 |
| head   | average over the map, linear                  |         |

574,890 parameters and 69.3 M multiply-accumulates for ten classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class FastNet(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.stem = nn.Sequential(*_unit(3, 32))
        groups = [(32, 64), (64, 128), (128, 128)]
        self.groups = nn.Sequential(*(nn.Sequential(*_unit(a, b), nn.MaxPool2d(2), *_unit(b, b)) for a, b in groups))
        self.fc = nn.Linear(128, num_classes)
        nn.init.normal_(self.fc.weight, 0, 0.01)  # small initial logits, for the high learning rates of short runs
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.groups(self.stem(x)), 1).flatten(1))


def _unit(c_in: int, c_out: int) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]


def fast_cnn(num_classes: int, form: str) -> nn.Module:
    return FastNet(num_classes)
