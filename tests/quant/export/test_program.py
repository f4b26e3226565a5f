"""What stands beside a program: its example, and the integers of its values."""

import pytest

import models
import quant
from quant.export.program import check_beside, contract, example_text
from tests.conftest import photos
from tests.helpers import calibrated
from utils.errors import UserError


@pytest.mark.parametrize("template", ["pte_example.py", "tflite_example.py"])
def test_the_example_asks_for_the_file_beside_it_and_for_nothing_of_this_repository(template):
    text = example_text(template, "net_example.py")
    assert "python net_example.py photo.jpg" in text
    assert "from quant" not in text
    assert "from utils" not in text
    assert ("import torch" in text) == (template == "pte_example.py")
    compile(text, "net_example.py", "exec")


def test_integers_are_said_as_int8_with_their_limits():
    images = photos(2, 32)
    prepared = calibrated(models.build("resnet20", 10, 32, {}), images, method="lsq", weight_bits=4, act_bits=4)
    said = contract(quant.convert(prepared, "reference"))
    assert said["kernels"]
    limits = {(one["least"], one["greatest"]) for one in said["values"].values()}
    assert limits == {(-128, 127), (-128, -113)}
    assert all(one["least"] <= one["zero_point"] <= one["greatest"] for one in said["values"].values())


@pytest.mark.parametrize(("there", "asked"), [(".pte", ".tflite"), (".tflite", ".pte")])
def test_what_is_beside_another_program_is_not_overwritten(there, asked, tmp_path):
    check_beside(tmp_path / f"net{there}")
    (tmp_path / f"net{there}").write_bytes(b"")
    check_beside(tmp_path / f"net{there}")
    check_beside(tmp_path / f"other{asked}")
    with pytest.raises(UserError, match=rf"^export: net.json and .* those of net\{there}; choose another"):
        check_beside(tmp_path / f"net{asked}")
