"""Each observer finds the range that its definition names."""

import pytest
import torch

from quant.core import observers
from quant.core.observed import ObservedActivationQuantizer, ObservedWeightQuantizer
from quant.core.observers import Sampled


def calibrated(observer: str, batches, bits=4, symmetric=False, channels=None, percentile=99.0):
    if symmetric:
        quantizer = ObservedWeightQuantizer(bits, channels, observer, percentile)
    else:
        quantizer = ObservedActivationQuantizer(bits, observer, percentile)
    quantizer.observing = True
    for batch in batches:
        quantizer(batch)
    quantizer.finish_observing()
    quantizer.observing = False
    quantizer.eval()
    return quantizer


BATCHES = [torch.randn(50, 40, generator=torch.Generator().manual_seed(i)) * (1 + i) for i in range(4)]


def test_minmax_sees_all_batches():
    quantizer, every = calibrated("minmax", BATCHES), torch.stack(BATCHES)
    assert quantizer.low == every.min()
    assert quantizer.high == every.max()


def test_moving_average_starts_at_the_first_batch_and_moves_by_a_hundredth():
    low, high = BATCHES[0].min(), BATCHES[0].max()
    for batch in BATCHES[1:]:
        low, high = low + 0.01 * (batch.min() - low), high + 0.01 * (batch.max() - high)
    quantizer = calibrated("moving_average", BATCHES)
    assert quantizer.low.item() == pytest.approx(low.item(), rel=1e-6)
    assert quantizer.high.item() == pytest.approx(high.item(), rel=1e-6)


@pytest.mark.parametrize("percentile", [90.0, 99.0])
def test_percentile_leaves_out_the_named_share_at_each_end(percentile):
    quantizer, every = calibrated("percentile", BATCHES, percentile=percentile), torch.stack(BATCHES).flatten()
    outside = (every > quantizer.high).double().mean()
    assert outside.item() == pytest.approx(1 - percentile / 100, abs=2e-3)
    assert quantizer.low < 0


@pytest.mark.parametrize("observer", ["percentile", "mse"])
def test_samples_come_from_all_positions(observer):
    """Values that grow from the border inwards: a sample of corners alone would miss them."""
    ramp = torch.linspace(-1, 1, 32).abs()
    image = (1 - torch.maximum(ramp[:, None], ramp)).expand(512, 16, 32, 32)
    quantizer = calibrated(observer, [image, image], 8)
    assert quantizer.high.item() == pytest.approx(float(image.max()), rel=0.1)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("symmetric", "channels"), [(False, None), (True, None), (True, 50)])
def test_mse_is_no_worse_than_any_share_of_the_full_range(bits, symmetric, channels):
    x = torch.distributions.Laplace(0.0, 1.0).sample((50, 400))
    best = calibrated("mse", [x], bits, symmetric, channels)
    full = calibrated("last_minmax", [x], bits, symmetric, channels)
    errors = ((best(x) - x) ** 2).mean(1) if channels else ((best(x) - x) ** 2).mean()
    low, high = full.low.clone(), full.high.clone()
    for share in (1.0, 0.8, 0.6, 0.4, 0.2):
        full.low.copy_(low * share)
        full.high.copy_(high * share)
        other = ((full(x) - x) ** 2).mean(1) if channels else ((full(x) - x) ** 2).mean()
        assert (errors <= other + 1e-7).all()
    if bits == 2:
        assert (best.high < high).all(), "heavy tails are clipped at 2 bits"


def test_per_channel_ranges_differ_by_channel():
    x = torch.randn(3, 500) * torch.tensor([[0.1], [1.0], [10.0]])
    for observer in ("last_minmax", "percentile", "mse"):
        scale = calibrated(observer, [x], 8, True, 3).grid().scale
        assert scale[0] < scale[1] < scale[2]


class Search(Sampled):
    """Remembers what it searches in."""

    def search(self, sample, low, high, error_of):
        self.searched = sample, low, high
        return low, high


def test_a_sample_is_bounded_and_extremes_are_those_of_all_batches(monkeypatch):
    monkeypatch.setattr(observers, "SAMPLE", 64)
    observer, nothing = Search(100.0), torch.zeros(())
    batches = [torch.randn(100) * size for size in (1, 9, 1, 1, 1)]
    for batch in batches:
        low, high = observer.update(batch, nothing, nothing, False)
    assert all(len(sample) == 16 for sample in observer.sample)
    for _ in range(3):
        observer.sample.append(torch.zeros(16))
    observer.finish(lambda *_: None)
    sample, *found = observer.searched
    assert len(sample) == 64
    every = torch.cat(batches)
    assert found == [low, high] == [every.min(), every.max()]
    assert observer.finish(lambda *_: None) is None, "nothing is left of it"


def test_a_weight_is_sampled_whole_and_once(monkeypatch):
    monkeypatch.setattr(observers, "SAMPLE", 8)
    observer, nothing = Search(100.0), torch.zeros(20)
    first, last = torch.randn(20, 30), torch.randn(20, 30)
    observer.update(first, nothing, nothing, False)
    observer.update(last, nothing, nothing, False)
    observer.finish(lambda *_: None)
    sample, low, high = observer.searched
    assert torch.equal(sample, last)
    assert torch.equal(low, torch.minimum(first.amin(1), last.amin(1)))
    assert torch.equal(high, torch.maximum(first.amax(1), last.amax(1)))


def test_mse_tries_every_hundredth_of_the_range():
    tried = []

    def error_of(low, high, sample):
        tried.append((float(low), float(high)))
        return (high - 0.6).abs()

    low, high = observers.MeanSquaredError(100.0).search(
        torch.zeros(3), torch.tensor(-2.0), torch.tensor(4.0), error_of
    )
    assert (float(low), float(high)) == pytest.approx((-0.3, 0.6))
    assert tried == [pytest.approx((-2 * step / 100, 4 * step / 100)) for step in range(100, 0, -1)]
