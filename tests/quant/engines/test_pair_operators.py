"""The operators of the graph compute what the simulation does."""

import torch

from quant.engines import pair_operators  # noqa: F401  registers them

qdq = torch.ops.qdq


def test_sums_products_and_shuffles():
    p, q = torch.tensor([[0.5, 1.0, -2.0]]), torch.tensor([[1.0, 1.5, 0.5]])
    on_grid, grids = (0.5, 100, 0, 255), ([0.5, 0.5], [100, 100])
    assert qdq.sum(p, q, *grids, 1, *on_grid).tolist() == [[1.5, 2.5, -1.5]]
    assert qdq.sum(p, q, *grids, -1, *on_grid).tolist() == [[-0.5, -0.5, -2.5]]
    assert qdq.product(p, q, *grids, 2.0, *on_grid).tolist() == [[0.5, 1.5, -1.0]]
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert qdq.shuffle(x, 2, 1.0, 0).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert torch.equal(qdq.outside(x), x)
