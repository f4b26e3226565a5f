"""The engine of ExecuTorch says what is missing (what it computes: test_programs.py)."""

import pytest

import quant
from quant.engines import executorch
from utils.errors import UserError


def test_what_is_missing_is_a_line(monkeypatch):
    monkeypatch.setattr(executorch, "_is_here", lambda name: name != "torchao")
    quant.engine.cache_clear()
    with pytest.raises(
        UserError, match=r"^engines: executorch needs torchao: pip install --no-deps -r requirements-exec"
    ):
        quant.engine("executorch", "engines")
    quant.engine.cache_clear()
