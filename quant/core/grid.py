"""The affine integer grid: x_hat = scale * (q - zero_point), q an integer in [q_min, q_max].

Every quantizer's outputs lie on one, and the engines read nothing else. Integers travel here as fp32 tensors, which
hold them exactly; `centred` means q - zero_point, the number that multiplies the scale.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """scale fp32 [] or [C] (C on axis 0), zero_point int32 of the same shape, q_min and q_max integers."""

    scale: Tensor
    zero_point: Tensor
    q_min: int
    q_max: int

    def to_int(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """q = clamp(round(x / scale) + zero_point + offset, q_min, q_max), ties to even; fp32, of x's shape."""
        inverse = along_channels(1.0 / self.scale, x)
        q = (x * inverse).round_().add_(along_channels(self.zero_point, x))
        return (q if offset is None else q.add_(offset)).clamp_(self.q_min, self.q_max)

    def centred(self, x: Tensor) -> Tensor:
        """q - zero_point."""
        if self.zero_point.ndim:
            return self.to_int(x).sub_(along_channels(self.zero_point, x))
        low, high = self.q_min - int(self.zero_point), self.q_max - int(self.zero_point)
        return (x * (1.0 / self.scale)).round_().clamp_(low, high)

    def value(self, centred: Tensor) -> Tensor:
        """x_hat of centred integers."""
        return centred * along_channels(self.scale, centred)

    def value_(self, centred: Tensor) -> Tensor:
        """The same, in place."""
        return centred.mul_(along_channels(self.scale, centred))


def along_channels(per_channel: Tensor, like: Tensor) -> Tensor:
    return per_channel.view(-1, *[1] * (like.ndim - 1)) if per_channel.ndim else per_channel
