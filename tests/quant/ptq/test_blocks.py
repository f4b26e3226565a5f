"""Blocks are found in the graph alone, cover every layer once, and compute by themselves what the net computes."""

import itertools

import pytest
import torch
from torch import nn

import models
import quant.ptq.blocks
from quant.graph.quant_layers import QuantLayer
from quant.ptq.blocks import BlockRunner, blocks, images_at_once
from tests.conftest import photos, spec, with_real_statistics
from tests.nets import plain

NETS = {
    "resnet20": ("cifar", 32, [1, *[2] * 9, 1]),
    "resnet18": ("cifar", 32, [1, 2, 2, 3, 2, 3, 2, 3, 2, 1]),
    "mobilenet_v2": ("imagenet", 32, [*[3] * 17, 2]),
    "shufflenet_v2_x0_5": ("imagenet", 64, [1, 5, 3, 3, 3, 5, *[3] * 7, 5, 3, 3, 3, 2]),
    "mobilenet_v3_small": ("imagenet", 64, None),
}
"""The form, the image's side, and how many layers each block holds."""


def calibrated(model: nn.Module, size: int, **keys):
    images = photos(4, size)
    prepared = quant.prepare(with_real_statistics(model, images), spec(method="ptq", **keys))
    quant.calibrate(prepared, [images])
    return prepared.eval(), images


@pytest.mark.parametrize("name", list(NETS))
def test_blocks_in_turn_are_the_whole_net(name):
    form, size, layers = NETS[name]
    prepared, images = calibrated(models.build(name, 10, size, {"form": form}), size, weight_bits=4, act_bits=4)
    found = blocks(prepared, images[:1])
    assert layers is None or [len(block.layers) for block in found] == layers
    inside = [node.target for block in found for node in block.layers]
    assert sorted(inside) == sorted(name for name, m in prepared.named_modules() if isinstance(m, QuantLayer))
    assert all(before.exit is after.entry for before, after in itertools.pairwise(found))
    run, value = BlockRunner(prepared), images
    for block in found:
        value = run.values(block, value)
    with torch.no_grad():
        assert torch.equal(value, prepared(images))


def test_a_block_of_mobilenet_v2_ends_at_its_linear_bottleneck():
    prepared, images = calibrated(models.build("mobilenet_v2", 10, 32, {"form": "imagenet"}), 32)
    second = blocks(prepared, images[:1])[1]
    names = [node.target for node in second.layers]
    assert names == ["features.2.conv.0.0", "features.2.conv.1.0", "features.2.conv.2"]


def test_layers_in_a_row_are_joined_by_three():
    prepared, images = calibrated(plain(10), 32)
    assert [[node.target for node in block.layers] for block in blocks(prepared, images[:1])] == [
        ["0", "2", "4"],
        ["8"],
    ]


class Crossing(nn.Module):
    """What is read across a point keeps it from being one, and so does a tuple of parts."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 4, 4))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        first, second = self.a(x).relu().chunk(2, 1)
        y = self.b(first).relu() + self.c(second)
        return self.fc(y.mean([2, 3]))


def test_a_split_and_its_sum_are_one_block():
    prepared, images = calibrated(Crossing(), 32)
    assert [[node.target for node in block.layers] for block in blocks(prepared, images[:1])] == [
        ["a"],
        ["b", "c"],
        ["fc"],
    ]


def test_a_layer_alone_is_fed_what_the_block_feeds_it():
    prepared, images = calibrated(models.build("resnet20", 10, 32, {}), 32)
    run, block = BlockRunner(prepared), blocks(prepared, images[:1])[1]
    entry = torch.rand(4, 16, 32, 32)
    first, second = block.layers
    x = run.values(block.up_to(second), entry)
    assert torch.equal(x, run.values(block.single_layer(first), run.values(block.up_to(first), entry)))
    assert not torch.equal(run.values(block.single_layer(second), x), run.values(block, entry)), (
        "the addition is still to come"
    )


class SizesFirst(nn.Module):
    """Reads sizes at the beginning and uses them at the end, as EfficientNet-PyTorch does with the batch size."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8, 8, 8, 8))
        self.fc = nn.Linear(8 * 4, 5)

    def forward(self, x):
        count, height = x.shape[0], x.size(2)
        for layer in self.layers:
            x = layer(x).relu()
        x = nn.functional.adaptive_avg_pool2d(x, 4).reshape(2 * count, 8, height // 4).flatten(1)
        return self.fc(x.reshape(count, 2, 64)[:, :, :32].reshape(count, 2 * 32)[:, :32])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_size_that_is_read_early_does_not_make_the_whole_net_one_block(count):
    prepared, images = calibrated(SizesFirst(), 32)
    found = blocks(prepared, images[:1])
    assert [len(block.layers) for block in found] == [3, 3, 1]
    run, value = BlockRunner(prepared), images[:count]
    for block in found:
        value = run.values(block, value)
    with torch.no_grad():
        assert torch.equal(value, prepared(images[:count]))


def test_large_values_are_computed_for_fewer_images_at_once(monkeypatch):
    prepared, images = calibrated(models.build("resnet20", 10, 32, {}), 32)
    run, block = BlockRunner(prepared), blocks(prepared, images[:1])[0]
    at_once = run.values(block, images)
    elements = 16 * 32 * 32
    assert run.largest(block, images) == elements
    monkeypatch.setattr(quant.ptq.blocks, "ELEMENTS", 3 * elements)
    counts, value = [], run.value
    run.value = lambda block, x: counts.append(len(x)) or value(block, x)
    assert torch.equal(run.values(block, images), at_once)
    assert counts == [1, 3, 1], "one image to know the sizes, then three and the one that is left"
    assert images_at_once(elements, 4, 32) == 4
    assert images_at_once(1, 4, 32) == 32
