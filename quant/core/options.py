"""Options that several methods share, as base classes of their Options."""

from typing import Literal

from pydantic import Field

from utils.sections import Section


class BatchObserver(Section):
    observer: Literal["moving_average", "minmax"] = "moving_average"
    """How ranges of activations are found while training: averages over the batches' extremes, or the extremes."""


class DampeningOptions(Section):
    oscillation_dampening: float = Field(0.0, ge=0)
    """How strongly weights are pulled to the middle of their integer at the end of training, against oscillation."""


class SignedEdges(Section):
    signed_edges: Literal["clip", "affine"] = "clip"
    """Inputs of hidden layers that can be negative: clipped at either side on act_bits, or affine on 8 bits."""
