"""ExecuTorch as an engine: XNNPACK's kernels, in the program that export=model.pte writes.

ExecuTorch is optional: requirements-executorch.txt.
"""

import importlib.util

from quant.engines.programs import ProgramEngine
from quant.engines.xnnpack_builder import XnnpackBuilder
from quant.engines.xnnpack_kernels import IN_FLOAT, OUTSIDE, WAYS, XNNPACK

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

    name, builder, table = "executorch", XnnpackBuilder, WAYS
    int8, in_float, outside = XNNPACK, IN_FLOAT, OUTSIDE

    def missing(self) -> str:
        return missing()
