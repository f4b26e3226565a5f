"""Compare INT8 latency with the quantization tools of ONNX Runtime and OpenVINO, interleaved in one process.

    pip install -r requirements-deploy.txt nncf
    python -m benchmarks.int8_latency                                    the nine models of setting/latency.json
    python -m benchmarks.int8_latency --models resnet18 --json out.json

Columns: our engines in torch; `onnxruntime` and `openvino`, which run the ONNX file that we write; `executorch` and
`litert`, which run the programs that we write; and the tools of these packages,
onnxruntime.quantization.quantize_static (QDQ, uint8, one scale per channel) and nncf.quantize, on the same float model.
All are calibrated on noise. A ratio compares the fastest engine of each side, of ours among those whose logits of 8
random images are the simulation's bit for bit (the others have a *): for each burst, the ratio of the two medians; over
all bursts, the median (10th to 90th percentile).
"""

import argparse
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

import quant
from experiment import latency
from experiment.settings import LatencySettings
from quant.engines.onnx_sessions import onnxruntime_session, openvino_core, openvino_model_session
from utils import config, files, timing
from utils.environment import environment
from utils.table import markdown_table

OURS = ["fbgemm", "x86", "onednn", "onnxruntime", "openvino", "executorch", "litert"]
TORCH = OURS[:3]
REPEATS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", help="model names; default: those of setting/latency.json")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = config.load(LatencySettings, "setting/latency.json", [])
    rows = []
    for entry in options.models or settings.models:
        rows.append(measure(entry, settings.image_size, options.repeats))
        print(markdown_table(HEADER, [cells(row) for row in rows[-1:]]), flush=True)
    machine = environment()
    print(f"\n{machine['cpu']}, torch {machine['torch']}, threads: {torch.get_num_threads()}\n")
    print(markdown_table(HEADER, [cells(row) for row in rows]))
    if options.json:
        files.write_json(options.json, rows)


HEADER = ["model", *OURS, "ORT's own", "OpenVINO's own", "torch / best peer", "best exact of ours / best peer"]


def cells(row: dict) -> list[str]:
    def ratio(key: str) -> str:
        return "{:.2f} ({:.2f}-{:.2f})".format(*row[key])

    def time(name: str) -> str:
        inexact = row["bit_equal"].get(name, 100) < 100
        return f"{row['ms'][name]:.2f}{' *' * inexact}" if name in row["ms"] else ""

    times = [time(name) for name in (*OURS, "quantize_static", "nncf")]
    return [row["model"], *times, ratio("torch_over_peer"), ratio("ours_over_peer")]


def measure(entry: str | dict, image_size: int, repeats: int) -> dict:
    subject = latency.build(entry, image_size, 1000, trust=False)
    images = torch.randn(1, 3, subject.image_size, subject.image_size)
    calls: dict[str, Callable] = {}
    integer = latency.on_engines(
        subject, [name for name in OURS if name in quant.ENGINES and quant.ENGINES[name]().available()]
    )
    for name, candidate in integer.items():
        engine_images = images.contiguous(memory_format=candidate.model.engine.layout)
        calls[name] = latency.call(candidate.model.compile_for(engine_images), engine_images)
    exact = [name for name, candidate in integer.items() if candidate.bit_equal == 100]
    calls |= {name: latency.call(run, images) for name, run in peers(subject.float_model, images).items()}
    taken = timing.samples(calls, 20, repeats, lambda n: None)
    bursts = {name: _bursts(times) for name, times in taken.items()}
    sides = {"torch": [name for name in TORCH if name in integer], "ours": exact, "peer": ["quantize_static", "nncf"]}
    best = {who: bursts[min(names, key=lambda name: statistics.median(taken[name]))] for who, names in sides.items()}
    return {
        "model": subject.label,
        "ms": {name: statistics.median(times) for name, times in taken.items()},
        "bit_equal": {name: candidate.bit_equal for name, candidate in integer.items()},
        "torch_over_peer": _ratio(best["torch"], best["peer"]),
        "ours_over_peer": _ratio(best["ours"], best["peer"]),
    }


def _bursts(times: list[float]) -> list[float]:
    """The median of each burst."""
    return [statistics.median(times[i : i + timing.BURST]) for i in range(0, len(times), timing.BURST)]


def _ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    spread = timing.spread([a / b for a, b in zip(ours, theirs, strict=True)])
    return spread.median, spread.p10, spread.p90


def peers(plain: nn.Module, images: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """The float model, quantized by the tools of ONNX Runtime and OpenVINO."""
    threads = torch.get_num_threads()
    noise = [torch.randn(images.shape).numpy() for _ in range(8)]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        file = Path(folder) / "float.onnx"
        written = torch.onnx.export(
            plain.eval(), (images,), input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
        )
        written.save(str(file))
        return {
            "quantize_static": onnxruntime_session(_quantize_static(file, noise), images.shape, threads),
            "nncf": openvino_model_session(_nncf(file, noise), images.shape, threads),
        }


def _quantize_static(file: Path, noise: list[numpy.ndarray]) -> bytes:
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(noise)

        def get_next(self):
            image = next(self.left, None)
            return None if image is None else {"images": image}

    clean, made = file.with_name("clean.onnx"), file.with_name("int8.onnx")
    shape_inference.quant_pre_process(str(file), str(clean))
    uint8 = quantization.QuantType.QUInt8  # three times as fast on x86 as int8, the default
    quantization.quantize_static(str(clean), str(made), Reader(), per_channel=True, activation_type=uint8)
    return made.read_bytes()


def _nncf(file: Path, noise: list[numpy.ndarray]) -> Any:
    """An openvino.Model."""
    import nncf

    return nncf.quantize(openvino_core().read_model(file), nncf.Dataset([{"images": image} for image in noise]))


if __name__ == "__main__":
    main()
