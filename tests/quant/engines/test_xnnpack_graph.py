"""Programs of XNNPACK's operators are written and run."""

import numpy
import torch

from quant.engines.xnnpack_graph import Graph, Loaded
from tests.conftest import needs_executorch


@needs_executorch
def test_a_program_of_two_inputs_adds_and_clamps_integers():
    graph = Graph()
    p, q = graph.input((1, 4), 0.5, 1), graph.input((1, 4), 0.5, 1)
    y = graph.value((1, 4), 0.5, 1)
    graph.node("XNNAdd", (-1.0, 2.0), input1_id=p.id, input2_id=q.id, output_id=y.id)
    graph.output(y, 2)
    run = Loaded(graph.program())
    found = run(torch.tensor([[2, 1, 100, -100]], dtype=torch.int8), torch.tensor([[2, 1, 100, 50]], dtype=torch.int8))
    assert found[0].tolist() == [[3, 1, 5, -1]]


@needs_executorch
def test_a_program_stays_valid_when_the_number_of_threads_changes():
    graph = Graph()
    x = graph.input((1, 2))
    y = graph.value((1, 2))
    graph.node("XNNAbs", input_id=x.id, output_id=y.id)
    graph.output(y)
    run, threads = Loaded(graph.program()), torch.get_num_threads()
    try:
        for count in (2, 1, 2):
            torch.set_num_threads(count)
            assert run(torch.tensor([[-1.0, 2.0]]))[0].tolist() == [[1.0, 2.0]]
    finally:
        torch.set_num_threads(threads)


@needs_executorch
def test_what_executorch_prints_of_the_processor_is_left_out(capfd):
    graph = Graph()
    x = graph.input((1, 2))
    y = graph.value((1, 2))
    graph.node("XNNAbs", input_id=x.id, output_id=y.id)
    graph.output(y)
    Loaded(graph.program())(torch.zeros(1, 2))
    assert capfd.readouterr() == ("", "")


@needs_executorch
def test_the_file_has_scales_as_they_are_even_between_two_numbers_of_fp32():
    scale = 0.01682958845049143  # half way: who wrote the file rounded up, numpy and torch round down
    graph = Graph()
    x = graph.input((1, 4), scale, 0)
    y = graph.value((1, 4), scale, 0)
    graph.node("XNNCopy", input_id=x.id, output_id=y.id)
    graph.output(y)
    assert x.scale == float(numpy.float32(scale))
    assert graph.program().count(numpy.float32(scale).tobytes()) == 2
