"""What is asked or measured: a checkpoint on an engine, or an export, with the section by which its images are made."""

import pytest

from experiment import classifier
from experiment.exported import Info
from experiment.settings import EvaluateSettings
from utils.errors import UserError

SQUARE = {"image_size": 96, "resize": 96, "crop": "squash", "interpolation": "bicubic"}
INFO = Info(**SQUARE, mean=[0.5] * 3, std=[0.2] * 3, classes=["a"])


def test_a_checkpoint_is_converted_to_the_first_engine(run):
    settings = EvaluateSettings(checkpoint=str(run / "a" / "last.pt"), engines=["x86", "onednn"])
    found = classifier.load(settings)
    assert (found.engine, found.classes, found.section.image_size) == ("x86", ["bright", "dark", "middle"], 16)


def test_what_is_asked_for_counts(run):
    settings = EvaluateSettings(checkpoint=str(run / "a" / "last.pt"), data={"mean": [0.1] * 3})
    assert classifier.load(settings).mean == [0.1] * 3


def test_images_of_an_export_are_made_as_it_says():
    section = classifier.section_of_export(INFO, {"root": "mine"})
    assert (section.name, section.image_size, section.resize, section.crop) == ("imagefolder", 96, 96, "squash")
    digits = classifier.section_of_export(INFO, {"name": "digits"})
    assert (digits.image_size, digits.mean) == (96, [0.5] * 3)
    with pytest.raises(UserError, match=r"data\.name: unknown 'nothing'"):
        classifier.section_of_export(INFO, {"name": "nothing"})
