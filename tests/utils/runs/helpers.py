"""A small net, its state dict as after training, and loading what others would have saved of it."""

import torch
from torch import Tensor, nn

from utils.runs import checkpoint

Names = dict[str, Tensor]


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c_in, c_out, 3, bias=False), nn.Conv2d(c_out, c_out, 3, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(c_out), nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))


class Net(nn.Module):
    """Convolutions, batch norms, and a constant that is not saved."""

    def __init__(self, classes: int = 5, width: int = 4, blocks: int = 2, kernel: int = 3, channels: int = 3):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, kernel, bias=False), nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(*(Block(width, width) for _ in range(blocks)))
        self.fc = nn.Linear(width, classes)
        self.register_buffer("offset", torch.zeros(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(torch.relu(self.bn1(self.conv1(x - self.offset))))
        return self.fc(x.mean((2, 3)))


def trained(model: nn.Module | None = None) -> Names:
    """A state dict as after some training: no value is that of a new model."""
    model = model or Net()
    model(torch.randn(2, 3, 16, 16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
    return model.state_dict()


def prefixed(prefix: str):
    return lambda state: {prefix + name: value for name, value in state.items()}


def load(contents: dict, tmp_path, model: nn.Module | None = None, **keys) -> tuple[Names, checkpoint.Loaded]:
    torch.save(contents, tmp_path / "theirs.pth")
    model = model or Net()
    loaded = checkpoint.load_weights(model, str(tmp_path / "theirs.pth"), **keys)
    return model.state_dict(), loaded
