"""The contract of a quantizer, and the one whose range is observed.

    forward(x)   the fake-quantized x; identity when disabled. An activation in front of it may be left to it: bounds
    grid()       the Grid that forward's outputs lie on, as it is now
    to_int(x)    the integers: x_hat = scale * (to_int(x) - zero_point), exactly

The engines read grid() and to_int() and nothing else, so a new method runs in integers on the day it is written.
"""

import torch
from torch import Tensor, nn

from quant.core.activation import IDENTITY, ClampedAffine, bounded, is_clamp
from quant.core.fake_quantize import Rounding, Straight, fits, norm_rounded, normed, rounded
from quant.core.grid import Grid, along_channels
from quant.core.observers import OBSERVERS
from utils import distributed

TINY = 2.0**-24
Shape = tuple[int, ...]


class Quantizer(nn.Module):
    """Base of all quantizers. `enabled` and `observing` are switched by quant.calibrate and by train().

    weight_decay: that of its own learned parameters, as torch's optimizers count it. note: what a report says of it.
    members: how many values a forward pass of the model puts on its grid: those of a concatenation share one.
    """

    weight_decay = 0.0
    note = ""

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits
        self.register_buffer("enabled", torch.tensor(True))
        self.observing = False
        self.members = 1
        self.parts: list[Tensor] = []

    def joined(self, x: Tensor) -> Tensor | None:
        """The values of all members, flat, when the last of them has come; x itself where there is but one."""
        if self.members == 1:
            return x.detach()
        self.parts.append(x.detach().flatten())
        if len(self.parts) < self.members:
            return None
        every, self.parts = torch.cat(self.parts), []
        return every

    def waits(self) -> bool:
        """Whether members have yet to come before there is a first range; until then values pass as they are."""
        return self.members > 1 and not self.ready()

    def forward(self, x: Tensor, bounds: ClampedAffine = IDENTITY) -> Tensor:
        if not is_clamp(bounds):
            x, bounds = bounded(x, bounds), IDENTITY
        self.observe(x, bounds)
        if not self.enabled or self.waits():
            return bounded(x, bounds)
        with torch.autocast(x.device.type, enabled=False):
            return rounded(x, self.rounding(x).behind(bounds))

    def forward_normed(self, x: Tensor, norm: nn.Module | None, bounds: ClampedAffine) -> Tensor:
        """forward(norm(x), bounds), in fewer passes over memory where that can be done."""
        if norm is None or not (fits(x, norm, bounds) and self.enabled and self.ready()):
            return self(x if norm is None else norm(x), bounds)
        with torch.autocast(x.device.type, enabled=False):
            found = normed(x, norm)
            self.observe(found.ends, bounds)
            return norm_rounded(x, norm, found, self.rounding(x).behind(bounds))

    def observe(self, x: Tensor, bounds: ClampedAffine) -> None:
        """Let a range follow x, or its least and greatest value, behind the activation."""

    def rounding(self, x: Tensor) -> Rounding:
        """How values such as x are rounded now."""
        raise NotImplementedError

    def grid(self) -> Grid:
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether the grid means something yet."""
        return True

    def finish_observing(self) -> None:
        """Settle a range that waits for all batches of a calibration."""

    def to_int(self, x: Tensor) -> Tensor:
        return self.grid().to_int(x)


class StartedQuantizer(Quantizer):
    """One whose range has its first value from the first batch, once, in place, and never in eval.

    `started`, a buffer, says whether it has; a subclass sets the value in `start(x)`, x detached and fp32. That is the
    first batch of all processes together; a weight is the same in each.
    """

    def __init__(self, bits: int, started: bool, weight: bool = False):
        super().__init__(bits)
        self.weight = weight
        self.register_buffer("started", torch.tensor(started))

    def start(self, x: Tensor) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def observe(self, x: Tensor, bounds: ClampedAffine) -> None:
        if not (self.training or self.observing) or self.started:
            return
        x = bounded(x.detach(), bounds)
        every = self.joined(x if self.weight else distributed.all_gather_rows(x))
        if every is not None:
            self.start(every.float())
            self.started.fill_(True)

    def ready(self) -> bool:
        return bool(self.started)


class ObservedQuantizer(Quantizer):
    """A range [low, high], found by an observer, cut into equal steps.

    symmetric (weights): scale = max(|low|, |high|) / q_max, q in [-q_max, q_max] with q_max = 2^(bits-1) - 1.
    affine (activations): the range is stretched to hold 0, scale = (high - low) / (2^bits - 1), q in [0, 2^bits - 1],
    and zero_point = round(-low / scale): zero, and so padding, is exact.
    In train mode every batch is observed first; in eval the observer rests unless `observing` is set.
    offset: what learned rounding (ptq/adaround.py) adds to the nearest integer of each weight, int8; None: nothing.
    """

    def __init__(
        self,
        bits: int,
        symmetric: bool,
        channels: int | None,
        observer: str,
        percentile: float,
        q_limit: int = 127,
        rounds: Shape | None = None,
    ):
        super().__init__(bits)
        self.symmetric = symmetric
        q_max = min(2 ** (bits - 1) - 1, q_limit) if symmetric else 2**bits - 1
        self.q_min, self.q_max = (-q_max if symmetric else 0), q_max
        shape = () if channels is None else (channels,)
        self.register_buffer("low", torch.zeros(shape))
        self.register_buffer("high", torch.zeros(shape))
        self.register_buffer("observed", torch.tensor(False))
        self.register_buffer("offset", None if rounds is None else torch.zeros(rounds, dtype=torch.int8))
        self.observer = OBSERVERS[observer](percentile)

    def forward(self, x: Tensor, bounds: ClampedAffine = IDENTITY) -> Tensor:
        if self.offset is None or not self.enabled:
            return super().forward(x, bounds)
        self.observe(x, bounds)
        grid, x = self.grid(), x.float()
        chosen = grid.value(self.to_int(x.detach()).sub_(along_channels(grid.zero_point, x)))
        return Straight.apply(rounded(x, self.rounding(x)), chosen, 1)

    @torch.no_grad()
    def observe(self, x: Tensor, bounds: ClampedAffine) -> None:
        if not (self.observing or self.training):
            return
        if not (self.observer.samples or self.low.ndim):
            x = torch.stack(torch.aminmax(x.detach().float()))  # which is all that it looks at
        every = self.joined(bounded(x, bounds))
        if every is not None:
            rows = every.float().flatten(1) if self.low.ndim else every.float()
            self._set(self.observer.update(rows, self.low, self.high, bool(self.observed)))

    def rounding(self, x: Tensor) -> Rounding:
        """The gradient passes where x rounds to an integer of the grid without being clipped."""
        grid = self.grid()
        least, most = grid.q_min - grid.zero_point, grid.q_max - grid.zero_point
        ends = grid.scale * (least - 0.5), grid.scale * (most + 0.5)
        return Rounding(grid.scale, least.float(), most.float(), *ends)

    def ready(self) -> bool:
        return bool(self.observed)

    def grid(self) -> Grid:
        return self._grid(self.low, self.high)

    def to_int(self, x: Tensor) -> Tensor:
        return self.grid().to_int(x, self.offset)

    def _grid(self, low: Tensor, high: Tensor) -> Grid:
        low, high = low.clamp(max=0), high.clamp(min=0)
        if self.symmetric:
            scale = (torch.maximum(-low, high) / self.q_max).clamp(min=TINY)
            return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), self.q_min, self.q_max)
        scale = ((high - low) / self.q_max).clamp(min=TINY)
        zero_point = (-low / scale).round().clamp(self.q_min, self.q_max).int()
        return Grid(scale, zero_point, self.q_min, self.q_max)

    def finish_observing(self) -> None:
        """Offsets belong to the range that they were learned on."""
        self._set(self.observer.settle(self._fit))
        if self.offset is not None:
            self.offset.zero_()

    @torch.no_grad()
    def _set(self, found: tuple[Tensor, Tensor] | None) -> None:
        if found is not None:
            self.low.copy_(found[0])
            self.high.copy_(found[1])
            self.observed.fill_(True)

    def _fit(self, low: Tensor, high: Tensor, sample: Tensor) -> Tensor:
        """Mean squared error of the sample (values, or [C, values]) on the grid that [low, high] would give."""
        grid = self._grid(low, high)
        return (grid.value(grid.centred(sample)) - sample).square().mean(-1)
