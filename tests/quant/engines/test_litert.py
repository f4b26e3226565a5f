"""The engine of LiteRT says what is missing, and leaves all to XNNPACK (what it computes: test_programs.py)."""

import pytest

import models
import quant
from quant.engines import litert
from tests.conftest import needs_litert, photos
from tests.helpers import calibrated
from utils.errors import UserError


def test_what_is_missing_is_a_line(monkeypatch):
    monkeypatch.setattr(litert, "PACKAGES", ("ai_edge_nothing", "flatbuffers"))
    quant.engine.cache_clear()
    with pytest.raises(
        UserError, match=r"^engines: litert needs ai-edge-nothing: pip install --no-deps -r requirements-litert"
    ):
        quant.engine("litert", "engines")
    quant.engine.cache_clear()


@needs_litert
@pytest.mark.parametrize(("name", "bits"), [("resnet20", 2), ("mobilenet_v3_small", 8)])
def test_xnnpack_runs_a_whole_net_as_one_part(name, bits):
    images = photos(2, 32)
    prepared = calibrated(models.build(name, 10, 32, {}), images, method="lsq", weight_bits=bits, act_bits=bits)
    program = quant.convert(prepared, "litert").written(images[:1].shape).loaded()
    parts = [one["op_name"] for one in program.interpreter._get_ops_details()]
    assert parts.count("DELEGATE") == 1
    assert not {"MAXIMUM", "MINIMUM", "CAST", "GATHER", "PADV2"} & {*parts}
