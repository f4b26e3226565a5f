"""A description of the machine and the software that a run used."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import numpy
import torch

INT8_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")


def environment() -> dict:
    """Versions, CPU name, the CPU flags that matter for int8 kernels, number of threads, and git commit."""
    name, flags = _cpu()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "cpu": name,
        "cpu_flags": flags,
        "threads": torch.get_num_threads(),
        "git_commit": _commit(),
        **_accelerator(),
    }


def _accelerator() -> dict:
    """The accelerators' names, and of NVIDIA's the versions of driver, CUDA and cuDNN; {} without any."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return {}
    module, count = torch.get_device_module(found), torch.accelerator.device_count()
    names = [module.get_device_name(number) for number in range(count)] if hasattr(module, "get_device_name") else []
    described: dict = {"accelerator": found.type, "accelerators": names or count}
    if found.type == "cuda":
        described |= {"driver": _driver(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return described


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.split("\n")[0].strip() or None


def _cpu() -> tuple[str, list[str]]:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine(), []
    values: dict[str, str] = {}
    for line in info.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        values.setdefault(key.strip().lower(), value.strip())
    found = (values.get("flags") or values.get("features") or "").split()
    return values.get("model name", platform.machine()), [flag for flag in INT8_FLAGS if flag in found]


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
