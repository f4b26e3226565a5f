"""Quantize nets of timm and torchvision, untouched, and compare their integer models with the simulation.

    python -m benchmarks.other_nets --images runs/imagenette/train
    python -m benchmarks.other_nets --nets timm:ghostnet_100 torchvision:squeezenet1_1 --json out.json

Each net has random weights and batch norm statistics of photographs: crops of those in --images (an image folder), or
of the two of scikit-learn. It is quantized by ptq to 8 bits on half of them and measured on the other half. A row shows
the share of multiply-accumulates in integers, and the seconds that all of it took; of the worst of torch's engines, and
of each of --engines: how many predictions agree with the simulation, and how many images have logits that are equal to
the bit, in percent. Why an engine cannot run a net is said below the table.
"""

import argparse
import gc
import time
import warnings
from pathlib import Path

import torch

import models
import quant
from data.decoding import open_image
from tests.conftest import KERNELS, PROGRAMS, RUNTIMES, photos, with_real_statistics
from utils import files
from utils.errors import UserError, first_line
from utils.image_input import resize_and_crop
from utils.table import markdown_table

TIMM = [
    "regnetx_002", "regnety_002", "resnet10t", "mnasnet_small", "mobilenetv2_050", "mobilenetv3_small_050",
    "mobilenetv4_conv_small", "hardcorenas_a", "ghostnet_100", "efficientnet_b0", "tf_efficientnet_lite0",
    "tf_mobilenetv3_small_minimal_100", "mnasnet_100", "fbnetc_100", "spnasnet_100", "lcnet_050", "tinynet_e",
    "semnasnet_075", "convnext_atto", "repvgg_a0", "mobileone_s0", "fastvit_t8", "edgenext_xx_small",
    "vit_tiny_patch16_224", "deit_tiny_patch16_224", "xception41", "dla34", "resnext50_32x4d", "eca_resnet33ts",
    "seresnet33ts", "hrnet_w18_small", "cspresnet50", "darknet53", "selecsls42b", "skresnet18", "dpn68",
]  # fmt: skip
TORCHVISION = [
    "densenet121", "squeezenet1_1", "inception_v3", "resnet50", "efficientnet_v2_s", "convnext_tiny", "mnasnet0_5",
    "swin_t", "maxvit_t", "googlenet", "regnet_y_400mf", "shufflenet_v2_x0_5",
]  # fmt: skip
OPTIONS = {
    "torchvision:inception_v3": {"aux_logits": False, "init_weights": False},
    "torchvision:googlenet": {"aux_logits": False, "init_weights": False},
}
SIZES = {"maxvit_t": 224, "swin_t": 224, "vit_tiny_patch16_224": 224, "deit_tiny_patch16_224": 224, "inception_v3": 299}
"""Sides of the images; 128 for all others."""
OTHERS = [name for name in (*RUNTIMES, *PROGRAMS) if quant.ENGINES[name]().available()]
"""Engines with columns of their own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*(f"timm:{name}" for name in TIMM), *(f"torchvision:{name}" for name in TORCHVISION)]
    parser.add_argument("--nets", nargs="*", default=every)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--engines", nargs="*", default=OTHERS, choices=OTHERS)
    parser.add_argument("--count", type=int, default=32, help="images to calibrate on, and as many to measure")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    columns = [f"{engine} {what}" for engine in ("torch", *options.engines) for what in ("agreement %", "bit-equal %")]
    header = ["net", "MACs in integers %", *columns, "seconds"]
    rows: list[list[str]] = []
    failed: list[str] = []
    for name in options.nets:
        rows.append(measure(name, options.images, options.count, options.engines, failed))
        print("  ".join(rows[-1]), flush=True)
    print("\n".join([markdown_table(header, rows), *failed]))
    if options.json:
        files.write_json(options.json, [dict(zip(header, row, strict=True)) for row in rows])


def measure(name: str, folder: Path | None, count: int, engines: list[str], failed: list[str]) -> list[str]:
    """A row of the table. Adds to `failed` a line for each engine that cannot run the net."""
    start, size = time.monotonic(), SIZES.get(name.partition(":")[2], 128)
    torch.manual_seed(0)
    gc.collect()
    try:
        model = models.build(name, 1000, size, OPTIONS.get(name, {}))
        images = photos(2 * count, size) if folder is None else from_folder(folder, 2 * count, size)
        prepared = quant.prepare(with_real_statistics(model, images[:count]), quant.resolve(quant.parse(method="ptq")))
        quant.calibrate(prepared, [images[:count]])
        found, lines = compare(prepared.eval(), images[count:], engines)
        failed += [f"{name}: {line}" for line in lines]
        share = quant.integer_share(prepared, size).percent
    except (UserError, RuntimeError, ValueError) as error:
        return [name, first_line(error, 160), *[""] * 2 * (1 + len(engines)), f"{time.monotonic() - start:.0f}"]
    return [name, f"{share:.1f}", *found, f"{time.monotonic() - start:.0f}"]


@torch.inference_mode()
def compare(prepared: torch.fx.GraphModule, images: torch.Tensor, engines: list[str]) -> tuple[list[str], list[str]]:
    """(agreement and bit-equal logits in percent: the least of torch's engines, then of each other; what failed)."""
    simulated, failed = prepared(images), []
    least = [min(percents) for percents in zip(*(shares(prepared, e, images, simulated) for e in KERNELS), strict=True)]
    cells = [f"{value:.1f}" for value in least]
    for engine in engines:
        try:
            cells += [f"{value:.1f}" for value in shares(prepared, engine, images, simulated)]
        except quant.EngineFailed as error:
            cells += ["", ""]
            failed.append(first_line(error, 160))
    return cells, failed


def shares(
    prepared: torch.fx.GraphModule, engine: str, images: torch.Tensor, simulated: torch.Tensor
) -> tuple[float, float]:
    """Percent of the images whose class is the simulation's, and of those whose logits are equal to the bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits = quant.convert(prepared, engine)(images)
    same = [logits.argmax(1) == simulated.argmax(1), (logits == simulated).all(1)]
    agreement, equal = (100 * float(values.float().mean()) for values in same)
    return agreement, equal


def from_folder(folder: Path, count: int, size: int) -> torch.Tensor:
    """The first images of a folder, of its classes in turn, normalized as ImageNet is."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    each = [sorted(path.iterdir()) for path in classes]
    paths = [of_class[i] for i in range(-(-count // len(each))) for of_class in each][:count]
    pixels = [resize_and_crop(open_image(path), size, size) for path in paths]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    values = [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).view(p.height, p.width, 3) for p in pixels]
    return ((torch.stack(values) / 255 - mean) / std).permute(0, 3, 1, 2)


if __name__ == "__main__":
    main()
