"""Learning-rate schedules: the factor on the peak rate at a point of the run.

A schedule is a function of the progress t in [0, 1] after the warm-up. The warm-up rises linearly from 0 to 1 and is
counted in epochs; the rate is set before every step.
"""

import math
from collections.abc import Sequence

MILESTONES = (0.5, 0.75)
"""Where schedule step divides the rate, unless the setting says otherwise."""
SCHEDULES = {
    "cosine": lambda t, milestones: 0.5 * (1 + math.cos(math.pi * t)),
    "step": lambda t, milestones: 0.1 ** sum(t >= m for m in milestones),
    "linear": lambda t, milestones: 1 - t,
    "constant": lambda t, milestones: 1.0,
}


def factor(
    name: str, epoch: float, epochs: int, warmup_epochs: float, milestones: Sequence[float] | None = None
) -> float:
    """The factor at `epoch`, a real number: 2.5 is the middle of the third epoch."""
    if epoch < warmup_epochs:
        return epoch / warmup_epochs
    t = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
    return SCHEDULES[name](min(t, 1.0), milestones or MILESTONES)
