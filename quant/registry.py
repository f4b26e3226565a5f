"""The tables of methods and of engines, and the quant section for each method.

A new method is one file and a row in METHODS.
"""

import functools
from collections.abc import Callable

from quant.core.method import FLOAT, AnyMethod
from quant.core.settings import QuantSettings
from quant.engines.base import Engine
from quant.engines.executorch import XnnpackEngine
from quant.engines.litert import LitertEngine
from quant.engines.onednn import OnednnEngine
from quant.engines.runtimes import onnxruntime_engine, openvino_engine
from quant.methods import dorefa, lsq, pact, ptq, statassist
from utils.errors import UserError, choose
from utils.sections import variants

METHODS: dict[str, AnyMethod] = {
    "float": FLOAT,
    "ptq": ptq.METHOD,
    "dorefa": dorefa.METHOD,
    "pact": pact.METHOD,
    "lsq": lsq.METHOD,
    "statassist": statassist.METHOD,
}

SECTIONS = variants("method", QuantSettings, {name: row.options for name, row in METHODS.items()}, "statassist")
"""The quant section for each method: the common keys and the method's options."""


def _native(name: str) -> Callable[[], Engine]:
    def make() -> Engine:
        from quant.engines.native import NativeEngine  # here: a torch without quantized tensors has the other engines

        return NativeEngine(name)

    return make


def _x86() -> Engine:
    """On quantized tensors, whose kernels take less time a call, as long as torch has them."""
    native = _native("x86")()
    return native if native.available() else OnednnEngine("x86")


ENGINES: dict[str, Callable[[], Engine]] = {
    "reference": Engine,
    "fbgemm": _native("fbgemm"),
    "qnnpack": _native("qnnpack"),
    "x86": _x86,
    "onednn": lambda: OnednnEngine("onednn"),
    "onnxruntime": onnxruntime_engine,
    "openvino": openvino_engine,
    "executorch": XnnpackEngine,
    "litert": LitertEngine,
}


AUTO = "auto"
"""In the place of an engine's name: the fastest one that is exact for the trained net, on this machine."""


def available() -> dict[str, Engine]:
    """The engines that can be used on this machine, by name."""
    return {name: found for name, make in ENGINES.items() if (found := make()).available()}


@functools.cache
def engine(name: str, key: str = "quant.engine") -> Engine:
    """The engine of that name, which the setting has under `key`. Raises UserError if there is none."""
    found = choose(ENGINES, name, key)()
    if not found.available():
        raise UserError(f"{key}: {name} {found.missing()} (here: {', '.join(available())})")
    return found
