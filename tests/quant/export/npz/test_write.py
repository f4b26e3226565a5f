"""The size of a packed file is that of the model's integers at their own bits."""

import json

import numpy

from quant.analysis.compare import megabytes_at_bits
from tests.packed import exported, prepared_net


def test_the_size_is_that_of_the_arrays_and_of_the_bits(tmp_path):
    sizes = {}
    for bits in (8, 4, 2):
        prepared = prepared_net("resnet20", {}, {"method": "lsq", "weight_bits": bits, "first_last_bits": "same"})
        exported(prepared, tmp_path / "m.npz")
        with numpy.load(tmp_path / "m.npz", allow_pickle=False) as file:
            assert all(file[name].dtype.kind in "iufU" for name in file.files)
            sizes[bits] = file["uint8"].nbytes
            of_layers = sum(file[name].nbytes for name in ("uint8", "float32", "int32"))
            assert json.loads(str(file["model"]))["format"] == 2
        assert megabytes_at_bits(prepared) == of_layers / 1e6
        weights = sum(p.numel() for name, p in prepared.named_parameters() if p.ndim in (2, 4))
        assert sizes[bits] == weights * bits / 8, "every layer's weights fill whole bytes here"
        assert (tmp_path / "m.npz").stat().st_size < of_layers + 6_000
