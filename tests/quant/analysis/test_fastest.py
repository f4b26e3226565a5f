"""The engine auto is the fastest of those whose logits are the simulation's."""

import contextlib
import re
import time

import pytest
import torch

import quant
from quant.analysis.fastest import fastest
from quant.engines.base import Engine, EngineFailed
from tests.conftest import photos, spec


class Slow(Engine):
    """Exact, and slower than the reference at each call. Python in an operator would be left out of a traced model."""

    name = "slow"

    @contextlib.contextmanager
    def running(self):
        time.sleep(0.01)
        yield


class Coarse(Engine):
    """Fast, and a step off in the image."""

    name = "coarse"

    def quantize(self, grid):
        return lambda x: (grid.centred(x) + 1).clamp(max=grid.q_max - int(grid.zero_point))


class Broken(Engine):
    name = "broken"

    def quantize(self, grid):
        def fail(x):
            raise EngineFailed("broken: cannot run this")

        return fail


@pytest.fixture(scope="module")
def prepared():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 5))
    found = quant.prepare(net.eval(), spec(method="ptq"))
    quant.calibrate(found, [photos(8, 8)])
    return found


def test_of_the_exact_engines_the_fastest_is_chosen_and_the_others_are_named(prepared):
    engines = {"coarse": Coarse(), "broken": Broken(), "slow": Slow(), "reference": Engine()}
    choice = fastest(prepared, engines, photos(8, 8))
    assert choice.name == "reference"
    assert {*choice.milliseconds} == {"slow", "reference"}
    assert choice.milliseconds["slow"] > choice.milliseconds["reference"]
    assert choice.bit_equal["coarse"] < 100
    line = str(choice)
    assert line.startswith("engine reference, the fastest exact one here; ms an image: reference ")
    assert "not exact: coarse (" in line
    assert line.endswith("; broken: cannot run this")


def test_auto_is_one_of_the_engines_that_are_measured(prepared, capsys):
    batches = [(photos(8, 8), torch.zeros(8, dtype=torch.int64))]
    measured = quant.measure(prepared, ["auto", "reference"], batches, False, 8)
    [named] = re.findall(r"^engine (\w+), the fastest", capsys.readouterr().out, re.MULTILINE)
    assert {*measured.result["agreement"]} == {named, "reference"}
    assert named in quant.ENGINES
