"""Nets that several processes have to train as one does: unused layers, synchronized batch norm, dropout."""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth


class Net(nn.Module):
    """Convolutions without batch norm. Layers may be put between them and before the last."""

    def __init__(self, num_classes: int, between: nn.Module | None = None, late: nn.Module | None = None):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)
        self.between, self.late = between or nn.Identity(), late or nn.Identity()
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.between(self.conv1(x)))
        return self.fc(self.late(F.relu(self.conv2(x)).mean((2, 3))))


def unused(num_classes: int) -> nn.Module:
    model = Net(num_classes)
    model.old, model.scale = nn.Linear(16, 99), nn.Parameter(Tensor([1.0]))
    return model


def synced(num_classes: int) -> nn.Module:
    """Both kinds: of maps, and of vectors."""
    model = Net(num_classes, nn.BatchNorm2d(16), nn.BatchNorm1d(16))
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def dropout(num_classes: int) -> nn.Module:
    return Net(
        num_classes, nn.Sequential(nn.Dropout2d(0.2), nn.Dropout(0.1), StochasticDepth(0.1, "row")), nn.Dropout(0.3)
    )


def all_of_them(num_classes: int) -> nn.Module:
    model = Net(num_classes, nn.Sequential(nn.SyncBatchNorm(16), nn.Dropout(0.2)))
    model.old = nn.Linear(16, 99)
    return model
