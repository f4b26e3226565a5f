"""What images published weights were trained with: torchvision's by the file's contents, timm's by the model's name."""

import functools
import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.errors import UserError

HASH = re.compile(r"-([0-9a-f]{8,})\.pth$")
"""At the end of the names of torchvision's files: how the SHA-256 of their contents begins."""


def preprocessing(name: str, weights: str) -> dict[str, Any] | None:
    """Keys of the data section for a file of weights of the model of that name, or None if nobody says.

    They are image_size, resize, crop, interpolation, mean and std. Raises UserError if the file cannot be read.
    """
    if name.startswith("timm:"):
        return _timms(name.removeprefix("timm:"))
    return _torchvisions(_sha256(Path(weights)))


def _timms(name: str) -> dict[str, Any] | None:
    from timm.models import get_pretrained_cfg  # here: seconds to import

    found = get_pretrained_cfg(name, allow_unregistered=True)
    if found is None:
        return None
    size = found.input_size[-1]
    keys = {"image_size": size, "resize": math.floor(size / found.crop_pct), "crop": found.crop_mode}
    return keys | {"interpolation": found.interpolation, "mean": [*found.mean], "std": [*found.std]}


@functools.lru_cache(maxsize=16)
def _torchvisions(sha256: str) -> dict[str, Any] | None:
    for weights in _published_by_torchvision():
        known = HASH.search(weights.url)
        if known and sha256.startswith(known[1]):
            made = weights.transforms()
            keys = {"image_size": made.crop_size[0], "resize": made.resize_size[0], "crop": "center"}
            return keys | {"interpolation": made.interpolation.value, "mean": [*made.mean], "std": [*made.std]}
    return None


def _published_by_torchvision() -> Iterator[Any]:
    from torchvision import models

    for name in models.list_models(module=models):
        yield from models.get_model_weights(name)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for chunk in iter(functools.partial(file.read, 2**20), b""):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return digest.hexdigest()
