"""Dropout in several processes: the masks that one process would draw for the whole batch, each process with its rows.

While `drawn_together` lasts, modules that multiply their input by a random mask draw it for all images of the step,
from one stream of random numbers, the same in every process. Process i of n has images i, i + n, i + 2n, ...
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MASKING = {"Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "StochasticDepth", "DropPath"}
"""Names of modules that multiply by a mask, which they draw image by image: torch's, torchvision's and timm's."""


class Masks:
    """The stream of random numbers of one step after another, and how many images the step has."""

    def __init__(self) -> None:
        self.seed, self.images, self.all_images = 0, 1, 1
        self.state: list[Tensor] | None = None

    def start(self, seed: int, images: int, all_images: int) -> None:
        """Begin a step. images: of this process."""
        self.seed, self.images, self.all_images, self.state = seed, images, all_images, None

    def draw(self, make: Callable[[], Tensor], device: torch.device) -> Tensor:
        """make(), from the stream; other random numbers stay as they would be."""
        sources = [torch, *([] if device.type == "cpu" else [torch.get_device_module(device)])]
        before = [source.get_rng_state() for source in sources]
        if self.state is None:
            torch.manual_seed(self.seed)
        else:
            _set(sources, self.state)
        made = make()
        self.state = [source.get_rng_state() for source in sources]
        _set(sources, before)
        return made


def _set(sources: list[Any], states: list[Tensor]) -> None:
    for source, state in zip(sources, states, strict=True):
        source.set_rng_state(state)


class _Together(nn.Module):
    """A module that multiplies by a random mask, as one process would by its rows of the mask for the whole batch."""

    masks: Masks

    def forward(self, x: Tensor) -> Tensor:
        rows, rest = divmod(len(x), self.masks.images)
        if not self.training or rest:
            return super().forward(x)
        mask = self.masks.draw(lambda: self._whole_mask(x, rows), x.device)
        mine = mask.unflatten(0, (self.masks.all_images, rows))[dist.get_rank() :: dist.get_world_size()]
        return x * mine.flatten(0, 1)

    @torch.no_grad()
    def _whole_mask(self, x: Tensor, rows: int) -> Tensor:
        """What the module makes of ones, for `rows` rows of each image of all processes."""
        layout = torch.channels_last if x.ndim == 4 and x.stride(1) == 1 else torch.contiguous_format
        whole = (self.masks.all_images * rows, *x.shape[1:])
        return super().forward(torch.ones(whole, dtype=x.dtype, device=x.device).contiguous(memory_format=layout))


@functools.cache
def _together(kind: Any) -> Any:
    return type(f"Together{kind.__name__}", (_Together, kind), {})


@contextlib.contextmanager
def drawn_together(model: nn.Module) -> Iterator[Masks | None]:
    """The masks to `start` at every step while it lasts; None if the model draws none."""
    found: dict[Any, Any] = {module: type(module) for module in model.modules() if type(module).__name__ in MASKING}
    masks = Masks()
    for module, kind in found.items():
        module.__class__, module.masks = _together(kind), masks
    try:
        yield masks if found else None
    finally:
        for module, kind in found.items():
            module.__class__ = kind
            del module.masks
