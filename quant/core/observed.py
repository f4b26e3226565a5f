"""Quantizers whose range [low, high] is found by an observer (core/observers.py) and divided into equal steps.

In train mode every batch is observed before it is quantized; in eval mode only while `observing` is set.
"""

import torch
from torch import Tensor

from quant.core.activation import ClampedAffine
from quant.core.fake_quantize import Rounding, Straight, rounded
from quant.core.grid import Grid
from quant.core.observers import OBSERVERS
from quant.core.quantizer import TINY, ActivationQuantizer, Quantizer, Shape, WeightQuantizer


class ObservedRange(Quantizer):
    """Mixin: the range, its observer, and rounding to the grid that `grid_of` makes of a range.

    low, high: buffers, fp32 [] or [channels]. observed: a flag, whether they have been set.
    """

    low: Tensor
    high: Tensor
    flags = ("observed",)

    def __init__(self, bits: int, channels: int | None, observer: str, percentile: float):
        super().__init__(bits)
        shape = () if channels is None else (channels,)
        self.register_buffer("low", torch.zeros(shape))
        self.register_buffer("high", torch.zeros(shape))
        self.observed = False
        self.observer = OBSERVERS[observer](percentile)

    def grid_of(self, low: Tensor, high: Tensor) -> Grid:
        """The grid for a range that contains 0."""
        raise NotImplementedError

    def grid(self) -> Grid:
        return self._stretched(self.low, self.high)

    def rounding(self, x: Tensor) -> Rounding:
        """The gradient passes where x rounds to an integer of the grid without being clipped."""
        grid = self.grid()
        least, most = grid.q_min - grid.zero_point, grid.q_max - grid.zero_point
        passing = grid.scale * (least - 0.5), grid.scale * (most + 0.5)
        return Rounding(grid.scale, least.float(), most.float(), *passing)

    def is_calibrated(self) -> bool:
        return self.observed

    def finish_observing(self) -> None:
        self._set(self.observer.finish(self._error))

    def _update(self, x: Tensor) -> None:
        self._set(self.observer.update(x, self.low, self.high, self.observed))

    @torch.no_grad()
    def _set(self, found: tuple[Tensor, Tensor] | None) -> None:
        if found is not None:
            self.low.copy_(found[0])
            self.high.copy_(found[1])
            self.observed = True

    def _stretched(self, low: Tensor, high: Tensor) -> Grid:
        return self.grid_of(low.clamp(max=0), high.clamp(min=0))

    def _error(self, low: Tensor, high: Tensor, sample: Tensor) -> Tensor:
        """Mean squared error of the sample (values, or [C, values]) on the grid that [low, high] would give."""
        grid = self._stretched(low, high)
        return (grid.value(grid.centred(sample)) - sample).square().mean(-1)


class ObservedWeightQuantizer(ObservedRange, WeightQuantizer):
    """Symmetric: scale = max(|low|, |high|) / q_max, q in [-q_max, q_max], q_max = 2^(bits-1) - 1 or less (q_limit).

    channels: number of output channels, each with its own range; None: one range for the tensor.
    learned_rounding: the shape of the weight whose rounding is learned (ptq/adaround.py), or None. `offset`, a buffer,
    int8 of that shape, is then added to the nearest integer of each weight.
    """

    offset: Tensor | None

    def __init__(
        self,
        bits: int,
        channels: int | None,
        observer: str,
        percentile: float = 100.0,
        q_limit: int = 127,
        learned_rounding: Shape | None = None,
    ):
        super().__init__(bits, channels, observer, percentile)
        self.q_max = min(2 ** (bits - 1) - 1, q_limit)
        offset = None if learned_rounding is None else torch.zeros(learned_rounding, dtype=torch.int8)
        self.register_buffer("offset", offset)

    def forward(self, w: Tensor) -> Tensor:
        if self.offset is None or not self.enabled:
            return super().forward(w)
        self.observe(w)
        w = w.float()
        chosen = self.grid().value(self.to_int(w.detach()))
        return Straight.apply(rounded(w, self.rounding(w)), chosen, 1)

    def to_int(self, w: Tensor) -> Tensor:
        return self.grid().to_int(w, self.offset)

    @torch.no_grad()
    def observe(self, w: Tensor) -> None:
        if self.observing or self.training:
            w = w.detach().float()
            self._update(w.flatten(1) if self.low.ndim else w)

    def finish_observing(self) -> None:
        """Also resets the learned rounding, which belongs to the range that it was learned on."""
        super().finish_observing()
        if self.offset is not None:
            self.offset.zero_()

    def grid_of(self, low: Tensor, high: Tensor) -> Grid:
        scale = (torch.maximum(-low, high) / self.q_max).clamp(min=TINY)
        return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), -self.q_max, self.q_max)


class ObservedActivationQuantizer(ObservedRange, ActivationQuantizer):
    """Affine: the range is widened to contain 0, scale = (high - low) / (2^bits - 1), q in [0, 2^bits - 1].

    zero_point = round(-low / scale): zero is represented exactly, and with it padding.
    """

    def __init__(self, bits: int, observer: str, percentile: float = 100.0):
        super().__init__(bits, None, observer, percentile)
        self.q_min, self.q_max = 0, 2**bits - 1

    def make_symmetric(self, signed: bool) -> None:
        """Zero point 0 from now on: +-(2^(bits-1) - 1) steps, or 0 .. 2^bits - 1 where x cannot be negative."""
        self.symmetric = True
        if signed:
            self.q_max = 2 ** (self.bits - 1) - 1
            self.q_min = -self.q_max

    @torch.no_grad()
    def observe(self, x: Tensor, activation: ClampedAffine) -> None:
        if not (self.observing or self.training):
            return
        if not self.observer.samples:
            x = torch.stack(torch.aminmax(x.detach().float()))  # all that such an observer uses
        every = self.gather_members(activation(x))
        if every is not None:
            self._update(every.float())

    def grid_of(self, low: Tensor, high: Tensor) -> Grid:
        if self.symmetric:
            scale = (torch.maximum(-low, high) / self.q_max).clamp(min=TINY)
            return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), self.q_min, self.q_max)
        scale = ((high - low) / self.q_max).clamp(min=TINY)
        zero_point = (-low / scale).round().clamp(0, self.q_max).int()
        return Grid(scale, zero_point, 0, self.q_max)
