"""The keys of the data section that every dataset reads: their defaults and bounds."""

import pydantic
import pytest

from data import DataSettings


def test_without_validation_images_or_a_limit_by_default():
    section = DataSettings()
    assert (section.name, section.val_fraction, section.limit, section.augment) == ("digits", None, None, "crop")


@pytest.mark.parametrize(
    "values",
    [
        {"image_size": 7},
        {"image_size": 1025},
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"limit": 0},
        {"val_fraction": 1.0},
        {"val_fraction": -0.1},
        {"augment": 1},
        {"images": 3},
    ],
)
def test_other_values_are_refused(values):
    with pytest.raises(pydantic.ValidationError):
        DataSettings(**values)
