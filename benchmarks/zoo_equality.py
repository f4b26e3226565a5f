"""Check every operator of every model of the table on every engine, layer by layer. Takes minutes, so it is not a test.

    python -m benchmarks.zoo_equality
    python -m benchmarks.zoo_equality --models mobilenet_v3_small vgg11 --json out.json

Each model, in each of its forms and with each of its options, is quantized to 8 bits twice: with weights and images
that cover their whole ranges (random batch norms with negative and zero gamma), and with the statistics of photographs.
Every operator of an engine gets the inputs that the simulation computed. A row shows the number of operators, the
largest difference in steps, and how many of all values differ.
"""

import argparse
import gc
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import models
import quant
from quant.engines.layerwise_check import check_layerwise
from tests.conftest import KERNELS, photos, with_real_statistics
from tests.helpers import full_range
from utils import files
from utils.table import text_table

ENGINES = [name for name in KERNELS if name != "reference"]
HEADER = ["model", "data", "engine", "operators", "most steps", "differing", "of values", "bit-equal logits %"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(models.MODELS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name, chosen in cases(options.models):
        for row in measure(name, chosen):
            rows.append(row)
            print("  ".join(str(value) for value in row), flush=True)
    print(text_table(HEADER, [[str(value) for value in row] for row in rows]))
    operators, differing = sum(row[3] for row in rows), sum(row[5] for row in rows)
    print(
        f"\n{len(rows)} rows, {operators:,} operators, {differing:,} of {sum(row[6] for row in rows):,} values differ"
    )
    if options.json:
        files.write_json(options.json, [dict(zip(HEADER, row, strict=True)) for row in rows])


def cases(names: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(name, options) of every form and option of these models."""
    for name in names:
        row = models.MODELS[name]
        keys = {"form": row.forms} | row.options
        for values in itertools.product(*keys.values()):
            yield name, dict(zip(keys, values, strict=True))


def measure(name: str, options: dict[str, str]) -> Iterator[tuple]:
    size = models.MODELS[name].image_size or (32 if options["form"] == "cifar" else 64)
    label = " ".join([name, *options.values()])
    for data in ("full range", "photographs"):
        torch.manual_seed(0)
        model = models.build(name, 10, size, options)
        if data == "full range":
            images = torch.rand(2, 3, size, size).mul_(2).sub_(1).contiguous(memory_format=torch.channels_last)
            full_range(model)
            limit_growth(model)
        else:
            images = photos(2, size)
            with_real_statistics(model, images)
        yield from on_engines(label, data, model.eval(), images)


@torch.no_grad()
def limit_growth(model: nn.Module) -> None:
    """Scale the weights so that values do not grow from layer to layer: deep models would overflow fp32.

    The weights' integers stay the same.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.mul_((3 / layer.weight[0].numel()) ** 0.5)


def on_engines(label: str, data: str, model: nn.Module, images: torch.Tensor) -> Iterator[tuple]:
    prepared = quant.prepare(model, quant.resolve(quant.parse(method="ptq")))
    quant.calibrate(prepared, [images])
    with torch.inference_mode():
        simulated = prepared.eval()(images)
    for engine in ENGINES:
        gc.collect()  # graphs are reference cycles: the previous engine's still holds its weights
        integer = quant.convert(prepared, engine)
        found = check_layerwise(prepared, integer, images).values()
        equal = 100 * float((integer(images) == simulated).all(1).float().mean())
        steps, differing = int(max(f.steps for f in found)), sum(f.differing for f in found)
        yield label, data, engine, len(found), steps, differing, sum(f.elements for f in found), equal


if __name__ == "__main__":
    main()
