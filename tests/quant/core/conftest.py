"""What tests of kernels share: running them uncompiled and compiled."""

import pytest

from quant.core import kernels
from tests.quant.core.helpers import compile_or_skip


@pytest.fixture(params=["plain", "compiled"])
def way(request):
    """Kernels uncompiled, then compiled."""
    if request.param == "compiled":
        compile_or_skip()
    yield request.param
    kernels.interpret_all()
