"""Flags are Python values that a state dict holds as tensors."""

import copy

import pytest
import torch
from torch import nn

from quant.core.flags import Flagged


class Door(Flagged):
    flags = ("open", "locked")

    def __init__(self):
        super().__init__()
        self.open, self.locked = True, False
        self.register_buffer("height", torch.tensor(2.0))


def test_flags_are_saved_as_tensors_beside_the_buffers():
    state = nn.Sequential(Door()).state_dict()
    assert set(state) == {"0.open", "0.locked", "0.height"}
    assert state["0.open"].dtype == torch.bool
    assert bool(state["0.open"])
    assert not bool(state["0.locked"])
    assert not list(Door().parameters())


def test_a_subclass_adds_flags():
    class Gate(Door):
        flags = ("rusty",)

        def __init__(self):
            super().__init__()
            self.rusty = True

    assert {"open", "locked", "rusty"} <= set(Gate().state_dict())


def test_flags_are_loaded_as_python_values():
    door, state = Door(), {"open": torch.tensor(False), "locked": torch.tensor(True), "height": torch.tensor(3.0)}
    kept = copy.copy(state)
    assert door.load_state_dict(state) == ([], [])
    assert (door.open, door.locked, float(door.height)) == (False, True, 3.0)
    assert state == kept, "the caller's dict is not changed"


def test_a_missing_flag_and_one_that_is_no_scalar_are_named():
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "locked"'):
        Door().load_state_dict({"open": torch.tensor(False), "height": torch.tensor(3.0)})
    state = {"open": torch.zeros(2), "locked": torch.tensor(True), "height": torch.tensor(3.0)}
    with pytest.raises(RuntimeError, match=r"open has shape \[2\]; a flag has \[\]"):
        Door().load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*shut"):
        Door().load_state_dict(Door().state_dict() | {"shut": torch.tensor(True)})
