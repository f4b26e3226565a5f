"""Where images come from. A loader takes (root, image_size, limit, workers) and returns a Dataset."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from data.images import IMAGENET_MEAN, IMAGENET_STD, Dataset, Files, Images, first, statistics
from utils.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".gif"}
MEMORY_BYTES = 2**31


def digits(root: str, image_size: int, limit: int | None, workers: int) -> Dataset:
    """1,797 real handwritten digits of 8 x 8 (scikit-learn's, no file needed): 1,437 to train, 360 to test."""
    from sklearn.datasets import load_digits  # here: seconds to import, and only this needs it

    table = load_digits()
    grey = torch.from_numpy(table.images / 16).float()[:, None]
    pixels = _grey_to_pixels(F.interpolate(grey, size=(image_size, image_size), mode="bilinear"))
    every = Images(pixels, torch.from_numpy(table.target).long())
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    train, test = first(every.take(order[360:]), limit), first(every.take(order[:360]), limit)
    mean, std = statistics(train.pixels)
    return Dataset(train, test, [str(i) for i in range(10)], mean, std, flip=False)


def fake(root: str, image_size: int, limit: int | None, workers: int) -> Dataset:
    """Seeded noise over a colour and a brightness gradient per class: learnable, for trials and tests."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(10, 1, 1, 3, generator=generator)
    ramp = torch.linspace(-1, 1, image_size)
    slopes = torch.randn(10, 2, generator=generator)
    planes = (slopes[:, 0, None, None] * ramp[:, None] + slopes[:, 1, None, None] * ramp)[..., None]

    def draw(n: int) -> Images:
        labels = torch.randint(0, 10, (n,), generator=generator)
        noise = torch.randn(n, image_size, image_size, 3, generator=generator)
        values = 0.6 * colours[labels] + 0.2 + 0.1 * planes[labels] + 0.1 * noise
        return Images((values * 255).clamp(0, 255).to(torch.uint8), labels)

    train, test = draw(min(limit or 2048, 2048)), draw(min(limit or 512, 512))
    return Dataset(train, test, [f"class{i}" for i in range(10)], (0.5,) * 3, (0.25,) * 3, flip=True)


def cifar10(root: str, image_size: int, limit: int | None, workers: int) -> Dataset:
    """CIFAR-10, by torchvision: found in `root`, else downloaded into it."""
    from torchvision.datasets import CIFAR10  # here: seconds to import, and only this needs it

    try:
        parts = [CIFAR10(root, train=train, download=True) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"data.root: CIFAR-10 is not in {root} and could not be downloaded ({str(error).splitlines()[0]}); "
            f"put cifar-10-python.tar.gz there"
        ) from None
    train, test = (
        first(Images(_resized(torch.from_numpy(p.data), image_size), torch.tensor(p.targets)), limit) for p in parts
    )
    return Dataset(train, test, parts[0].classes, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), flip=True)


def imagefolder(root: str, image_size: int, limit: int | None, workers: int) -> Dataset:
    """One's own images: root/train/<class>/* and root/test/<class>/* (or val/).

    Kept in memory when they fit in 2 GB at image_size; else decoded a batch at a time.
    """
    classes = _class_names(Path(root) / "train")
    held_out = next((Path(root) / name for name in ("test", "val") if (Path(root) / name).is_dir()), None)
    if held_out is None:
        raise UserError(f"data.root: {root} has no test/ and no val/ folder beside train/")
    train, test = (first(_files(folder, classes), limit) for folder in (Path(root) / "train", held_out))
    if (len(train) + len(test)) * 3 * image_size**2 > MEMORY_BYTES:
        return Dataset(train, test, classes, IMAGENET_MEAN, IMAGENET_STD, flip=True)
    train, test = (_decode(part, image_size, workers) for part in (train, test))
    mean, std = statistics(train.pixels)
    return Dataset(train, test, classes, mean, std, flip=True)


def open_square(path: Path, image_size: int) -> Image.Image:
    """An image file as RGB: its shorter side resized to image_size, then the centre cut out."""
    try:
        image = Image.open(path).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path}: not a readable image ({error})") from None
    if image.size == (image_size, image_size):
        return image
    ratio = image_size / min(image.size)
    wide, high = (max(image_size, round(side * ratio)) for side in image.size)
    left, top = (wide - image_size) // 2, (high - image_size) // 2
    resized = image.resize((wide, high), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + image_size, top + image_size))


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"data.root: no folder {folder}; expected {folder}/<class>/<image>")
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir())
    if not classes:
        raise UserError(f"data.root: {folder} holds no class folders; expected {folder}/<class>/<image>")
    return classes


def _files(folder: Path, classes: list[str]) -> Files:
    strangers = sorted({p.name for p in folder.iterdir() if p.is_dir()} - set(classes))
    if strangers:
        raise UserError(f"data.root: {folder} has classes that train/ has not: {', '.join(strangers[:5])}")
    found = [
        (path, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise UserError(f"data.root: no images under {folder} (looked for {', '.join(sorted(SUFFIXES))})")
    return Files([path for path, _ in found], torch.tensor([label for _, label in found]))


def _decode(files: Files, image_size: int, workers: int) -> Images:
    pixels = numpy.empty((len(files), image_size, image_size, 3), dtype=numpy.uint8)

    def fill(i: int) -> None:
        pixels[i] = open_square(files.paths[i], image_size)

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        done = pool.map(fill, range(len(files)))
        for _ in tqdm(done, total=len(files), desc="decoding", unit="image", leave=False, disable=None):
            pass
    return Images(torch.from_numpy(pixels), files.labels)


def _grey_to_pixels(grey: Tensor) -> Tensor:
    """[N, 1, H, W] in [0, 1] to uint8 [N, H, W, 3]."""
    return (grey * 255).round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()


def _resized(pixels: Tensor, image_size: int) -> Tensor:
    if pixels.shape[1] == image_size:
        return pixels
    planes = F.interpolate(pixels.permute(0, 3, 1, 2), size=(image_size, image_size), mode="bilinear", antialias=True)
    return planes.permute(0, 2, 3, 1).contiguous()
