"""Reads a model from a .npz file: float images in, float logits out, bit for bit those of the reference engine.

It needs nothing but the file, and executes no code from it: the file names functions and classes of the whitelists in
export/npz/operators.py and graph/op_table.py.
"""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy
import torch
from torch import Tensor, fx, nn

from quant.export.npz.codec import DTYPES, Decoder
from utils.errors import UserError, first_line, joined_lines
from utils.runs.unpacking import check_archive

FORMAT = 2


class PackedModel(nn.Module):
    """The model in a file. info: what its writer says about it (class names, normalization ...)."""

    def __init__(self, info: dict[str, Any], graph: fx.Graph):
        super().__init__()
        self.info, self.graph = info, graph

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Float logits [N, classes] of normalized float images [N, 3, H, W]. Raises UserError if there are none."""
        # not a GraphModule: that would generate Python code with strings of the file in it, and execute it
        try:
            logits = fx.Interpreter(self, graph=self.graph).run(images)
            if not isinstance(logits, Tensor):
                raise TypeError(f"it computes a {type(logits).__name__}")
            return logits
        except Exception as error:  # the file may ask for anything
            raise UserError(f"the packed model cannot run on {list(images.shape)}: {first_line(error, 100)}") from error


def load(path: str) -> PackedModel:
    """The model in a file. Raises UserError if it is not one that this version reads. Executes no code from it."""
    try:
        check_archive(path)
        with open(path, "rb") as opened, numpy.load(opened, allow_pickle=False) as file:
            arrays = {dtype: file[dtype] for dtype in DTYPES}
            model = json.loads(str(file["model"]), parse_constant=_refuse)
        if model["format"] != FORMAT:
            raise ValueError(f"format {model['format']}, not {FORMAT}")
        return PackedModel(model["info"], _graph(model, arrays))
    except Exception as error:  # zip, numpy and JSON raise exceptions of all kinds for damaged files
        reason = getattr(error, "strerror", None) or joined_lines(error)
        raise UserError(f"{path}: not a packed model, or a damaged one ({reason[:100]})") from None


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number")


def _graph(model: dict[str, Any], arrays: Mapping[str, numpy.ndarray]) -> fx.Graph:
    graph = fx.Graph()
    nodes = {model["input"]: graph.placeholder("images")}
    decoder = Decoder(arrays, nodes)
    for plain in model["nodes"]:
        name, operator, args, kwargs = decoder.decode(plain)
        run = operator.__call__  # a method: fx needs a __name__, and hashes targets
        nodes[name] = graph.create_node("call_function", run, tuple(args), kwargs, name)
    graph.output(decoder.decode(model["output"]))
    return graph
