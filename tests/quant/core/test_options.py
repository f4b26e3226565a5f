"""Options that several methods share: their names and defaults are the same in each."""

import pytest

import quant
from quant.core.options import BatchObserver, DampeningOptions, SignedEdges, TrainingOptions
from utils.errors import UserError


@pytest.mark.parametrize(
    ("options", "key", "default", "refused"),
    [
        (BatchObserver, "observer", "moving_average", "mse"),
        (DampeningOptions, "oscillation_dampening", 0.0, -0.1),
        (TrainingOptions, "transition_rate", False, 1.5),
        (TrainingOptions, "rounding_gradient", "straight", "bent"),
        (TrainingOptions, "gradient_strength", None, 0.0),
        (SignedEdges, "signed_edges", "clip", "wide"),
    ],
)
def test_shared_options_are_the_same_in_every_method_that_has_them(options, key, default, refused):
    having = [name for name, method in quant.METHODS.items() if issubclass(method.options, options)]
    assert having
    for name in having:
        assert getattr(quant.parse(method=name), key) == default
        with pytest.raises(UserError, match=f"quant.{key}"):
            quant.parse(method=name, **{key: refused})
