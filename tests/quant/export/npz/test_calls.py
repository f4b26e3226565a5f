"""Operators that a packed file can name, and those that it cannot."""

import pytest
import torch
from torch import nn

import quant
from tests.conftest import photos, spec
from tests.packed import INFO
from utils.errors import UserError


class Unflattened(nn.Module):
    """nn.Unflatten and back."""

    def __init__(self):
        super().__init__()
        self.unflatten = nn.Unflatten(1, (2, -1))

    def forward(self, y):
        return self.unflatten(y).flatten(1, 2)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda y: torch.softmax(y, 1), "softmax"),
        (lambda y: torch.add(y, y, alpha=0.5), "add"),
        (Unflattened(), "Unflatten"),
    ],
)
def test_an_operator_that_no_file_can_name_is_refused_in_a_line(function, name, tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc, self.function = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), function

        def forward(self, x):
            return self.fc(self.function(self.conv(x)).mean((2, 3)))

    prepared = quant.prepare(Net().eval(), spec(method="ptq"))
    quant.calibrate(prepared, [photos(4, 32)])
    with pytest.raises(UserError, match=rf"export: a .npz file has no place for {name}"):
        quant.export_packed(prepared, tmp_path / "m.npz", 32, INFO)
    assert list(tmp_path.iterdir()) == []
