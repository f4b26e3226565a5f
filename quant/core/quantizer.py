"""The contract of quantizers: one type for weights, one for activations, one for gradients.

    forward(x)   the fake-quantized x, float in, float out; x itself when disabled
    grid()       the Grid on which the outputs of forward lie, as it is now
    to_int(x)    the integers of x, fp32: forward(x) = scale * (to_int(x) - zero_point), exactly

A weight quantizer may choose any integers that fit in -127 .. 127 and lie on its grid, whose zero point is 0; engines
read its grid() and its to_int(). An activation quantizer rounds to an affine uniform grid; engines read its grid()
alone, and so its to_int follows from the grid and cannot be overridden. prepare refuses a quantizer of another kind
(core/contract.py), and so does convert. Nothing else is read, so that a new method runs in integers on every engine.
"""

from dataclasses import replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from quant.core.activation import IDENTITY, ClampedAffine
from quant.core.fake_quantize import Rounding, can_fuse_norm, norm_rounded, normed, rounded
from quant.core.flags import Flagged
from quant.core.grid import Grid
from quant.core.rounding_gradient import Slope
from utils import distributed

TINY = 2.0**-24
"""The least scale: keeps 1 / scale finite."""
Shape = tuple[int, ...]


class Quantizer(Flagged):
    """What weight quantizers and activation quantizers have in common. Derive from one of those two.

    bits: width of its integers. enabled: a flag; False makes forward the identity. observing: whether it updates its
    range in eval mode too, as calibration asks for. note: a remark for reports, or "". weight_decay: that of its
    learned parameters, as torch's optimizers define it. slope: the gradient of rounding; None: straight through.
    A subclass with its own forward reads it there.
    """

    weight_decay = 0.0
    note = ""
    slope: Slope | None = None
    flags: ClassVar[tuple[str, ...]] = ("enabled",)

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits
        self.enabled, self.observing = True, False

    def grid(self) -> Grid:
        raise NotImplementedError

    def to_int(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def rounding(self, x: Tensor) -> Rounding:
        """How values such as x are rounded now, and what the gradients are."""
        raise NotImplementedError

    def sloped_rounding(self, x: Tensor) -> Rounding:
        """`rounding` with the gradient that `slope` asks for."""
        found = self.rounding(x)
        return found if self.slope is None else replace(found, slope=self.slope)

    def is_calibrated(self) -> bool:
        """Whether the range has been found, from data or otherwise, so that grid() is meaningful."""
        return True

    def finish_observing(self) -> None:
        """End of a calibration: find a range that depends on all batches together."""


class WeightQuantizer(Quantizer):
    """Quantizes a weight tensor, output channels on axis 0, per channel or per tensor.

    grid() has zero_point 0 and at most 2^bits integers, within -127 .. 127; its step is the distance between them
    (mid-rise: 2). to_int(w) may choose any of those integers. A subclass gives grid() and either rounding() (uniform
    rounding, gradients as in core/fake_quantize.py) or its own forward() and to_int().
    """

    def forward(self, w: Tensor) -> Tensor:
        self.observe(w)
        if not self.enabled:
            return w
        with torch.autocast(w.device.type, enabled=False):
            return rounded(w, self.sloped_rounding(w))

    def to_int(self, w: Tensor) -> Tensor:
        return self.grid().to_int(w)

    def observe(self, w: Tensor) -> None:
        """Update the range from w, where it depends on w."""


class ActivationQuantizer(Quantizer):
    """Quantizes activations on an affine uniform grid per tensor, integers in [q_min, q_max], ties to even.

    A subclass gives grid() and rounding(). to_int is final: engines quantize activations by their grid alone, so that
    other integers would be evaluated as if they were these. forward_normed is final, too: layers call it instead of
    forward(norm(x), activation).

    members: how many values of one forward pass of the model share this quantizer. More than one for the parts of a
    concatenation, which lie on one grid.
    symmetric: whether its zero point is 0 and its integers fit int8, because quant.symmetric_activations asks for it.
    """

    symmetric = False

    def __init__(self, bits: int):
        super().__init__(bits)
        self.members = 1
        self._gathered: list[Tensor] = []

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if cls.to_int is not ActivationQuantizer.to_int:
            raise TypeError(
                f"{cls.__name__}.to_int: an activation quantizer cannot override to_int, since engines read only the "
                "grid of an activation; its integers follow from grid(), which is affine and uniform"
            )
        if cls.forward_normed is not ActivationQuantizer.forward_normed:
            raise TypeError(
                f"{cls.__name__}.forward_normed: an activation quantizer cannot override forward_normed, which must "
                "equal forward(norm(x), activation); override rounding(), or forward()"
            )

    @final
    def to_int(self, x: Tensor) -> Tensor:
        return self.grid().to_int(x)

    def forward(self, x: Tensor, activation: ClampedAffine = IDENTITY) -> Tensor:
        """The fake-quantized activation(x)."""
        if not activation.is_clamp:
            x, activation = activation(x), IDENTITY
        self.observe(x, activation)
        if not self.enabled or self._lacks_members():
            return activation(x)
        with torch.autocast(x.device.type, enabled=False):
            return rounded(x, self.sloped_rounding(x).after(activation))

    @final
    def forward_normed(self, x: Tensor, norm: nn.Module | None, activation: ClampedAffine) -> Tensor:
        """forward(norm(x), activation), with fewer passes over memory where compiled kernels allow it."""
        if norm is None or not (can_fuse_norm(norm, x, activation) and self.enabled and self.is_calibrated()):
            return self(x if norm is None else norm(x), activation)
        with torch.autocast(x.device.type, enabled=False):
            found = normed(x, norm)
            self.observe(found.extremes, activation)
            return norm_rounded(x, norm, found, self.sloped_rounding(x).after(activation))

    def observe(self, x: Tensor, activation: ClampedAffine) -> None:
        """Update the range from x, taken after the activation. x may be just the least and the greatest value."""

    def gather_members(self, x: Tensor) -> Tensor | None:
        """The values of all members, flat, once the last has come, and None before; x where there is only one."""
        if self.members == 1:
            return x.detach()
        self._gathered.append(x.detach().flatten())
        if len(self._gathered) < self.members:
            return None
        every, self._gathered = torch.cat(self._gathered), []
        return every

    def _lacks_members(self) -> bool:
        """Whether the first range awaits further members; until then values pass unquantized."""
        return self.members > 1 and not self.is_calibrated()


class DataInitialized(Quantizer):
    """Mixin: a range or step that is initialized from the first batch: once, in place, and never in eval mode.

    A subclass sets the value in `initialize(x)`, x detached and fp32. `started`, a flag, tells whether that has
    happened.
    """

    flags = ("started",)

    def __init__(self, bits: int, started: bool):
        super().__init__(bits)
        self.started = started

    def initialize(self, x: Tensor) -> None:
        raise NotImplementedError

    def is_calibrated(self) -> bool:
        return self.started

    def _awaits_data(self) -> bool:
        return (self.training or self.observing) and not self.started

    @torch.no_grad()
    def _initialize(self, x: Tensor | None) -> None:
        if x is not None:
            self.initialize(x.detach().float())
            self.started = True


class DataInitializedWeightQuantizer(DataInitialized, WeightQuantizer):
    """Initialized from the weight, which is the same in all processes."""

    def observe(self, w: Tensor) -> None:
        if self._awaits_data():
            self._initialize(w)


class DataInitializedActivationQuantizer(DataInitialized, ActivationQuantizer):
    """Initialized from the first batches of all processes together."""

    @torch.no_grad()
    def observe(self, x: Tensor, activation: ClampedAffine) -> None:
        if self._awaits_data():
            self._initialize(self.gather_members(distributed.all_gather_rows(activation(x.detach()))))


class GradientQuantizer(nn.Module):
    """The identity; what it quantizes is its gradient, in train mode. Derive from it for a method's `gradient`.

    generator: draws the noise, if there is any; None: torch's default generator of the device.
    """

    def __init__(self):
        super().__init__()
        self.generator: torch.Generator | None = None
