"""A graph, operator by operator: each program computes what the graph computes at its place."""

import pytest
import torch

import quant
from quant.engines.operator_programs import compiled, of_node, values_of
from tests.helpers import prepared_gated


@pytest.mark.parametrize("engine", ["reference", "fbgemm", "x86"])
def test_each_program_computes_the_value_of_its_node(engine):
    prepared, images = prepared_gated()
    model = quant.convert(prepared, engine)
    images = images[:2].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), model.engine.running():
        values = values_of(model.graph, images)
        nodes = [n for n in model.graph.graph.nodes if n.op not in ("placeholder", "get_attr", "output")]
        for node in nodes:
            assert torch.equal(plain(of_node(model.graph, node, values)()), plain(values[node])), node.name
    assert len(nodes) > 5


def plain(x: torch.Tensor) -> torch.Tensor:
    return x.dequantize() if x.is_quantized else x


def test_a_program_reads_the_tensors_that_it_was_compiled_for():
    program = compiled(torch.nn.ReLU(), (torch.tensor([-1.0, 2.0]),))
    assert program().tolist() == [0, 2]
