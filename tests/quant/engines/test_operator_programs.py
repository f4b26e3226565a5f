"""A graph, operator by operator: each program computes what the graph computes at its place."""

import pytest
import torch
from torch import nn

import quant
from quant.engines.operator_programs import compiled, of_node, values_of
from tests.helpers import calibrated, prepared_gated


class Parts(nn.Module):
    """Tuples, constants that learn, and a batch norm by itself."""

    def __init__(self):
        super().__init__()
        self.norm, self.a, self.slope, self.fc = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 1), nn.PReLU(8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x):
        a, b = self.slope(self.a(self.norm(x))).chunk(2, 1)
        return self.fc((torch.cat([b, a], 1) * self.scale).mean((2, 3)))


def prepared_parts():
    images = torch.randn(8, 3, 10, 10)
    return calibrated(Parts(), images), images


@pytest.mark.parametrize("engine", ["reference", "fbgemm", "x86"])
@pytest.mark.parametrize("make", [prepared_gated, prepared_parts])
def test_each_program_computes_the_value_of_its_node(make, engine):
    prepared, images = make()
    model = quant.convert(prepared, engine)
    images = images[:2].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), model.engine.running():
        values = values_of(model.graph, images)
        nodes = [n for n in model.graph.graph.nodes if n.op not in ("placeholder", "get_attr", "output")]
        for node in nodes:
            found, expected = of_node(model.graph, node, values)(), values[node]
            if isinstance(expected, torch.Tensor):
                assert torch.equal(plain(found), plain(expected)), node.name
            else:
                assert len(found) == len(expected)
    assert len(nodes) > 5


def plain(x: torch.Tensor) -> torch.Tensor:
    return x.dequantize() if x.is_quantized else x


def test_a_program_reads_the_tensors_that_it_was_compiled_for():
    program = compiled(torch.nn.ReLU(), (torch.tensor([-1.0, 2.0]),))
    assert program().tolist() == [0, 2]
