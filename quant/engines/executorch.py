"""ExecuTorch as an engine: XNNPACK's kernels, in the program that export=model.pte writes.

ExecuTorch is optional: requirements-executorch.txt.
"""

import importlib.util

from quant.core.integer_operator import IntegerOperator
from quant.engines.program_kernels import Ways
from quant.engines.programs import ProgramEngine
from quant.engines.xnnpack_builder import XnnpackBuilder
from quant.engines.xnnpack_kernels import OUTSIDE, XNNPACK, ways_of

PACKAGES = ("executorch", "torchao", "ruamel.yaml", "tabulate", "flatbuffers")
"""What writing a program imports, of all that executorch asks for."""
INSTALL = "pip install --no-deps -r requirements-executorch.txt"


def missing() -> str:
    """What to install to write and run .pte files; empty if all is there."""
    absent = [name for name in PACKAGES if not _is_here(name)]
    return f"needs {' and '.join(absent)}: {INSTALL}" if absent else ""


def _is_here(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


class XnnpackEngine(ProgramEngine):
    """XNNPACK, in ExecuTorch."""

    name, builder, int8, outside = "executorch", XnnpackBuilder, XNNPACK, OUTSIDE

    def missing(self) -> str:
        return missing()

    def ways(self, op: IntegerOperator) -> Ways:
        return ways_of(op)
