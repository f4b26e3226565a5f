"""Operators and layers of a packed file: what is written is constructed again, and nothing else can be."""

import pytest
import torch

import quant
from quant.core.grid import Grid
from quant.engines.base import Engine
from quant.export.npz.operators import ENGINE_METHODS, EngineOperator, RecordingEngine
from tests.conftest import photos
from tests.packed import EVERY_METHOD, exported, integer_layers, prepared_net


def test_channels_that_left_their_grid_come_back(tmp_path):
    """A dead batch norm, and one so small that the integers are rounded again on a larger scale."""
    prepared = prepared_net("resnet20", {}, EVERY_METHOD[3])
    norm = prepared.get_submodule("bn1")
    with torch.no_grad():
        norm.weight[:3] = torch.tensor([0.0, 1e-12, -0.7])
        norm.bias[:3] = 2.0
    read, layer = exported(prepared, tmp_path / "m.npz"), quant.convert(prepared, "reference").layers["conv1"].layer
    assert not layer.weight[:2].any()
    assert torch.equal(integer_layers(read)[0].weight, layer.weight)
    with torch.inference_mode():
        assert torch.equal(read(photos(8, 32)), prepared(photos(8, 32)))


def test_the_recording_engine_computes_what_the_reference_engine_computes():
    grid, x = Grid(torch.tensor(0.1), torch.tensor(3, dtype=torch.int32), -8, 7), torch.randn(2, 4, 3, 3)
    recorded = RecordingEngine().quantize(grid)
    assert (recorded.method, recorded.args) == ("quantize", (grid,))
    assert torch.equal(recorded(x), Engine().quantize(grid)(x))
    assert RecordingEngine().shuffle(grid, 2)(x).equal(torch.channel_shuffle(x, 2))
    with pytest.raises(ValueError, match="'running' is not an operator that a file may ask for"):
        EngineOperator("running", ())
    assert set(ENGINE_METHODS) <= set(vars(Engine))
