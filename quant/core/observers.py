"""Observers: how a range [low, high] is found from the data that they are shown.

    minmax          the least and the greatest value seen
    moving_average  an exponential average of the batches' least and greatest values, constant 0.01 (Jacob et al.,
                    arXiv 1712.05877, section 3.1)
    percentile      the range beyond which, at each end, lies all but the given share of a sample of the values
    mse             the range, within that of minmax, with the least mean squared error of a sample on its grid

`update(x, low, high, observed)` takes a batch (per channel: [C, values]) and the range so far, and returns the new
range. observed: whether low and high already hold data. `finish(error_of)` ends a calibration: it returns the range
that depends on all batches together, or None where update has given it already. error_of(low, high, sample) is the
mean squared error of a sample on the grid of a range.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from utils import distributed

SAMPLE = 2**17
Range = tuple[Tensor, Tensor]


def extremes(x: Tensor, like: Tensor) -> Range:
    """Least and greatest value: of x in all processes for a scalar range, of each row of x for a range per channel."""
    return torch.aminmax(x, dim=1) if like.ndim else distributed.all_reduce_minmax(*torch.aminmax(x))


class MinMax:
    """Of all batches. Also the interface of an observer; percentile: where the observer of that name clips."""

    samples = False
    """Whether it uses more of a batch than its least and greatest value."""

    def __init__(self, percentile: float):
        pass

    def update(self, x: Tensor, low: Tensor, high: Tensor, observed: bool) -> Range | None:
        least, greatest = extremes(x, low)
        return (torch.minimum(low, least), torch.maximum(high, greatest)) if observed else (least, greatest)

    def finish(self, error_of: Callable) -> Range | None:
        return None


class LastMinMax(MinMax):
    """The last batch alone. For weights, where the batch is the tensor as it is now."""

    def update(self, x: Tensor, low: Tensor, high: Tensor, observed: bool) -> Range | None:
        return extremes(x, low)


class MovingAverage(MinMax):
    def update(self, x: Tensor, low: Tensor, high: Tensor, observed: bool) -> Range | None:
        least, greatest = extremes(x, low)
        return (low.lerp(least, 0.01), high.lerp(greatest, 0.01)) if observed else (least, greatest)


class Sampled(MinMax):
    """Base of observers that keep a random sample of each batch, and the exact extremes of all batches."""

    samples = True

    def __init__(self, percentile: float):
        self.fraction = percentile / 100
        self.sample: list[Tensor] = []
        self.range: Range | None = None

    def update(self, x: Tensor, low: Tensor, high: Tensor, observed: bool) -> Range | None:
        least, greatest = extremes(x, low)
        if self.range is not None:
            least, greatest = torch.minimum(self.range[0], least), torch.maximum(self.range[1], greatest)
        self.range = least, greatest
        if low.ndim:  # a weight: each batch is the whole of it
            self.sample = [x.clone()]
        else:
            self.sample.append(_taken(x, self._drawn_from(x.numel(), SAMPLE // 4)))
        return self.range

    def finish(self, error_of: Callable) -> Range | None:
        if self.range is None:
            return None
        found = self.search(self._drawn(), *self.range, error_of)
        self.sample, self.range = [], None
        return found

    def _drawn(self) -> Tensor:
        every = torch.cat(self.sample, dim=-1)
        return every[self._drawn_from(len(every), SAMPLE)] if every.ndim == 1 else every

    def _drawn_from(self, count: int, most: int) -> Tensor | slice:
        """At most `most` random positions of `count`. A regular stride could coincide with rows or channels."""
        return slice(None) if count <= most else torch.randint(count, (most,), generator=_seeded(len(self.sample)))

    def search(self, sample: Tensor, low: Tensor, high: Tensor, error_of: Callable) -> Range:
        """The range for a sample; low and high are the exact extremes."""
        raise NotImplementedError


def _taken(x: Tensor, positions: Tensor | slice) -> Tensor:
    """x.reshape(-1)[positions], without the copy of all of x that reshape makes of channels-last memory."""
    return x.reshape(-1) if isinstance(positions, slice) else x[torch.unravel_index(positions, x.shape)]


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Percentile(Sampled):
    def search(self, sample: Tensor, low: Tensor, high: Tensor, error_of: Callable) -> Range:
        ordered = sample.sort(dim=-1).values
        last = ordered.shape[-1] - 1
        return ordered[..., round(last * (1 - self.fraction))], ordered[..., round(last * self.fraction)]


class MeanSquaredError(Sampled):
    """Tries 1 %, 2 %, .. 100 % of the full range, each channel by itself; low and high shrink together."""

    def search(self, sample: Tensor, low: Tensor, high: Tensor, error_of: Callable) -> Range:
        best, best_error = torch.ones_like(low), torch.full_like(low, torch.inf)
        for step in range(100, 0, -1):
            error = error_of(low * step / 100, high * step / 100, sample)
            best = torch.where(error < best_error, step / 100, best)
            best_error = torch.minimum(error, best_error)
        return low * best, high * best


OBSERVERS = {
    "minmax": MinMax,
    "last_minmax": LastMinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "mse": MeanSquaredError,
}
