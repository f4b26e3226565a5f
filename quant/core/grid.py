"""The affine integer grid: x_hat = scale * (q - zero_point), with q one of q_min, q_min + step, .., q_max.

The outputs of every quantizer lie on such a grid, and engines read nothing else. Integers are stored as fp32 tensors,
which represent them exactly. `centred` integers are q - zero_point: the numbers that are multiplied by the scale.
"""

from dataclasses import dataclass

from torch import Tensor

from quant.core.numbers import clamp_, plain


@dataclass(frozen=True)
class Grid:
    """scale: fp32 [] or [C] (channels on axis 0). zero_point: int32, of the same shape. q_min, q_max: Python integers.

    step: the distance between neighbouring integers. 1, or 2 for mid-rise weights, whose integers are the odd numbers
    q_min .. q_max and which therefore have no zero. Raises ValueError for any other step.
    """

    scale: Tensor
    zero_point: Tensor
    q_min: int
    q_max: int
    step: int = 1

    def __post_init__(self):
        odd = self.q_min % 2 == self.q_max % 2 == 1
        if self.step != 1 and not (self.step == 2 and odd):
            found = f"step {self.step} from {self.q_min} to {self.q_max}"
            raise ValueError(f"a grid has step 1, or step 2 between odd integers: not {found}")

    def to_int(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """q = clamp(round(x / scale) + zero_point + offset, q_min, q_max), ties to even; fp32, of x's shape.

        With step 2, the odd integer that is nearest to x / scale, ties towards the even position on the grid.
        """
        steps = x * along_channels(self.scale.reciprocal(), x)
        if self.step == 1:
            q = steps.round_().add_(along_channels(self.zero_point, x))
        else:
            start = self.q_min - along_channels(self.zero_point, x)
            q = steps.sub_(start).div_(self.step).round_().mul_(self.step).add_(self.q_min)
        return (q if offset is None else q.add_(offset)).clamp_(self.q_min, self.q_max)

    def centred(self, x: Tensor) -> Tensor:
        """q - zero_point of x."""
        if self.zero_point.ndim or self.step != 1:
            return self.to_int(x).sub_(along_channels(self.zero_point, x))
        zero_point = plain(self.zero_point)
        return clamp_((x * self.scale.reciprocal()).round_(), self.q_min - zero_point, self.q_max - zero_point)

    def value(self, centred: Tensor) -> Tensor:
        """x_hat of centred integers."""
        return centred * along_channels(self.scale, centred)

    def value_(self, centred: Tensor) -> Tensor:
        """In-place version of `value`."""
        return centred.mul_(along_channels(self.scale, centred))


def along_channels(per_channel: Tensor, like: Tensor) -> Tensor:
    """A tensor [C] shaped to broadcast along axis 0 of `like`; a scalar tensor as it is."""
    return per_channel.view(-1, *[1] * (like.ndim - 1)) if per_channel.ndim else per_channel
