"""Files of LiteRT's operators are written and run."""

import json

import numpy
import pytest
import torch

from quant.engines.litert_graph import ALIGNMENT, Graph, Loaded, schema
from tests.conftest import needs_litert

KERNELS = ("AUTO", "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "BUILTIN_REF")
"""With XNNPACK, LiteRT's own for this processor, and its reference."""
pytestmark = needs_litert


def doubled() -> Graph:
    graph = Graph()
    x = graph.input((1, 2, 2, 1))
    y = graph.value(x.shape)
    graph.node("ADD", [x.id, x.id], y)
    graph.output(y)
    return graph


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_file_of_two_inputs_adds_and_clamps_integers(kernels):
    graph = Graph()
    p, q, y = graph.input((1, 4), 0.5, 1), graph.input((1, 4), 0.5, 1), graph.value((1, 4), 0.5, 1)
    graph.node("ADD", [p.id, q.id], y, fusedActivationFunction=1)
    graph.output(y)
    run = Loaded(graph.program(), kernels)
    found = run(torch.tensor([[2, 1, 100, -100]], dtype=torch.int8), torch.tensor([[2, 1, 100, 50]], dtype=torch.int8))
    assert found[0].tolist() == [[3, 1, 127, 1]]


def test_maps_go_in_and_come_out_in_the_order_of_torch_and_are_n_h_w_c_in_the_file():
    run, x = Loaded(doubled().program()), torch.arange(4.0).reshape(1, 2, 2, 1)
    assert torch.equal(run(x)[0], 2 * x)
    assert run.interpreter.get_input_details()[0]["shape"].tolist() == [1, 2, 1, 2]


def test_a_file_stays_valid_when_the_number_of_threads_changes():
    run, threads = Loaded(doubled().program()), torch.get_num_threads()
    try:
        for count in (2, 1, 2):
            torch.set_num_threads(count)
            assert run(torch.ones(1, 2, 2, 1))[0].unique().tolist() == [2.0]
    finally:
        torch.set_num_threads(threads)


def test_what_litert_prints_is_left_out(capfd):
    Loaded(doubled().program())(torch.zeros(1, 2, 2, 1))
    assert capfd.readouterr() == ("", "")


def test_the_file_can_be_asked_by_name_and_has_texts():
    file = doubled().program({"model.json": json.dumps({"classes": ["ä"]})})
    runner = Loaded(file).interpreter.get_signature_runner()
    assert runner(images=numpy.ones((1, 2, 1, 2), numpy.float32))["logits"].tolist() == [[[[2.0, 2.0]], [[2.0, 2.0]]]]
    model = schema().Model.GetRootAsModel(file, 0)
    text = bytes(model.Buffers(model.Metadata(0).Buffer()).DataAsNumpy())
    assert (model.Metadata(0).Name(), json.loads(text)) == (b"model.json", {"classes": ["ä"]})


def test_constants_lie_where_processors_read_them_fast_and_equal_ones_once():
    graph = Graph()
    x, three = graph.input((1, 3)), torch.tensor([1.0, 2.0, 3.0])
    ids = [graph.constant(three), graph.constant(torch.ones(5, dtype=torch.int8), 0.5), graph.constant(three)]
    y = graph.value((1, 3))
    graph.node("ADD", [x.id, ids[0]], y)
    graph.output(y)
    file = graph.program()
    for content in (three.numpy().tobytes(), b"\x01" * 5):
        assert file.count(content) == 1
        assert file.index(content) % ALIGNMENT == 0


def test_a_file_has_the_scales_as_they_are_even_between_two_numbers_of_fp32():
    scale = 0.01682958845049143
    graph = Graph()
    x, y = graph.input((1, 4), scale, 0), graph.value((1, 4), scale, 3)
    graph.node("QUANTIZE", [x.id], y)
    graph.output(y)
    assert x.scale == float(numpy.float32(scale))
    assert graph.program().count(numpy.float32(scale).tobytes()) == 2
