"""The engine of LiteRT says what is missing (what it computes: test_programs.py)."""

import pytest

import quant
from quant.engines import litert
from utils.errors import UserError


def test_what_is_missing_is_a_line(monkeypatch):
    monkeypatch.setattr(litert, "PACKAGES", ("ai_edge_nothing", "flatbuffers"))
    quant.engine.cache_clear()
    with pytest.raises(
        UserError, match=r"^engines: litert needs ai-edge-nothing: pip install --no-deps -r requirements-litert"
    ):
        quant.engine("litert", "engines")
    quant.engine.cache_clear()
