"""Random numbers depend only on the seed, the process, the epoch and the step."""

import random

import numpy
import pytest
import torch

from utils import seed
from utils.seed import Noise

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def restored():
    """The other tests' generators and algorithms stay as they are."""
    states = random.getstate(), numpy.random.get_state()
    yield
    random.setstate(states[0])
    numpy.random.set_state(states[1])
    torch.use_deterministic_algorithms(False)


def globally() -> tuple[float, ...]:
    return random.random(), numpy.random.rand(), torch.rand(()).item()


def drawn(noise: Noise, epoch: int, step: int) -> tuple[float, ...]:
    noise.at(epoch, step)
    return *(torch.rand((), generator=g).item() for g in (noise.shared, noise.own)), *globally()


def test_a_derived_seed_depends_on_every_number_and_their_order():
    found = [seed.derive_seed(*numbers) for numbers in ((0, 0), (0, 1), (1, 0), (1, 1), (-1, 0), (0, 1, 2))]
    assert len(set(found)) == len(found)
    assert all(0 <= number < 2**32 for number in found)
    assert seed.derive_seed(3, 4) == seed.derive_seed(3, 4)


def test_one_seed_gives_the_same_numbers_everywhere():
    seed.seed_all(5)
    first = globally()
    seed.seed_all(5)
    assert globally() == first
    seed.seed_all(6)
    assert not set(globally()) & set(first)


def test_deterministic_algorithms_are_used_if_asked(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    for wanted in (True, False):
        seed.seed_all(0, wanted)
        assert torch.are_deterministic_algorithms_enabled() == wanted


def test_noise_follows_from_the_position_alone():
    noise = Noise(1, 0, CPU)
    first = drawn(noise, 2, 3)
    for other in (drawn(noise, 2, 4), drawn(noise, 3, 3), drawn(Noise(2, 0, CPU), 2, 3)):
        assert not set(other) & set(first)
    assert drawn(noise, 2, 3) == first
    assert drawn(Noise(1, 0, CPU), 2, 3) == first


def test_processes_share_one_generator_alone():
    first, second = (drawn(Noise(1, rank, CPU), 2, 3) for rank in range(2))
    assert first[0] == second[0]
    assert not set(first[1:]) & set(second[1:])
