"""Compare how fast photographs become training batches: torchvision's reference, decoding alone, and ours, interleaved.

    python -m benchmarks.input_pipeline /tmp/imagenette            train/<class>/*.jpg, batch 128, 2 workers
    python -m benchmarks.input_pipeline /tmp/imagenette --rounds 5 --workers 4

torchvision  ImageFolder, v2's RandomResizedCrop, RandomHorizontalFlip and Normalize in a DataLoader's processes
decoder      decode_jpeg in a DataLoader's processes, stacked into uint8 batches: no crop, no mirroring, no fp32
ours         batches as data.name=imagenet makes them, to the normalized fp32 batch; uint8: the CPU's part of it for an
             accelerator; in memory: as imagefolder makes them of images that it keeps
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from utils import threads

threads.wait_briefly()  # before torch is imported, as in train.py

import torch  # noqa: E402

import data  # noqa: E402
from data.decoding import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from utils import memory, timing  # noqa: E402
from utils.device import CPU  # noqa: E402
from utils.environment import environment  # noqa: E402
from utils.table import markdown_table  # noqa: E402

SIZE = 224
NO_DEVICE = torch.device("meta")
"""Stands for an accelerator, and computes nothing."""
HEADER = ["", "images/s", "10 to 90 %", "over torchvision", "over the decoder"]
Epoch = Callable[[], Iterator]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    memory.keep_freed()
    speeds = interleaved(pipelines(options), options)
    machine = environment()
    print(f"\n{options.images} images, {SIZE} x {SIZE}, batch {options.batch}, {options.workers} workers; ", end="")
    print(f"{machine['cpu']}, torch {machine['torch']}, {machine['threads']} threads\n")
    print(markdown_table(HEADER, [cells(name, speeds) for name in speeds]))


def pipelines(options: argparse.Namespace) -> dict[str, Epoch]:
    return {
        "torchvision": reference(options),
        "decoder": decoder(options),
        "ours": ours(options, "imagenet", "crop"),
        "ours, uint8": ours(options, "imagenet", "crop", device=NO_DEVICE),
        "ours, in memory": ours(options, "imagefolder", "crop", cache="always"),
        "ours, augment=rand": ours(options, "imagenet", "rand"),
    }


def reference(options: argparse.Namespace) -> Epoch:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    steps = [
        v2.PILToTensor(),
        v2.RandomResizedCrop(SIZE, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        v2.ToPureTensor(),
    ]
    return loader(ImageFolder(str(Path(options.root, "train")), v2.Compose(steps)), options)


def decoder(options: argparse.Namespace) -> Epoch:
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    def decode(path: str) -> torch.Tensor:
        return decode_jpeg(read_file(path), ImageReadMode.RGB)

    return loader(ImageFolder(str(Path(options.root, "train")), loader=decode), options)


def loader(images, options: argparse.Namespace) -> Epoch:
    """Epochs of a DataLoader, whose workers live through them."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: options.images]
    made = torch.utils.data.DataLoader(
        torch.utils.data.Subset(images, order.tolist()),
        options.batch,
        shuffle=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )
    return lambda: iter(made)


def ours(options: argparse.Namespace, name: str, augment: str, device: torch.device = CPU, **keys) -> Epoch:
    dataset = data.DATASETS[name].load(SIZE, options.images, root=options.root, workers=options.workers, **keys)
    draw = data.Draw(seed=0, augment=augment, flip=True)
    return data.batches(dataset.training, options.batch, dataset.mean, dataset.std, SIZE, draw, device).__iter__


def interleaved(epochs: dict[str, Epoch], options: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second of each, in every round but the first, in which threads and processes start."""
    speeds: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(options.rounds + 1):
        for name, epoch in epochs.items():
            speeds[name].append(speed(epoch))
    return {name: found[1:] for name, found in speeds.items()}


def speed(epoch: Epoch) -> float:
    began = time.perf_counter()
    images = sum(len(labels) for _, labels in epoch())
    return images / (time.perf_counter() - began)


def cells(name: str, speeds: dict[str, list[float]]) -> list[str]:
    """Medians, and medians of the ratios of each round."""
    spread = timing.spread(speeds[name])
    ratios = [
        statistics.median(found / other for found, other in zip(speeds[name], speeds[beside], strict=True))
        for beside in ("torchvision", "decoder")
    ]
    return [name, f"{spread.median:.0f}", f"{spread.p10:.0f}-{spread.p90:.0f}", *(f"{ratio:.2f}" for ratio in ratios)]


if __name__ == "__main__":
    main()
