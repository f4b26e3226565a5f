"""A marked batch norm computes what one process would on the whole batch. (Two processes: tests/test_torchrun.py.)"""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from utils.sync_batch_norm import MARK, synchronized, use_plain_batch_norms


@pytest.fixture
def group():
    """A group of one process, in which sums over processes are those of this one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def volumes(**keys) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4, **keys), nn.Flatten(2), nn.SyncBatchNorm(4, **keys))


@pytest.mark.parametrize(
    "keys", [{}, {"momentum": None, "eps": 0.1}, {"affine": False}, {"track_running_stats": False}]
)
def test_a_plain_norm_takes_its_place_with_the_same_tensors(keys):
    model, images = volumes(**keys), torch.randn(4, 3, 8, 8)
    theirs, before = copy.deepcopy(model), dict(model.named_parameters()) | dict(model.named_buffers())
    use_plain_batch_norms(model, images)
    assert [type(model[1]), type(model[3])] == [nn.BatchNorm2d, nn.BatchNorm1d]
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    assert after.keys() == before.keys()
    assert all(after[name] is tensor for name, tensor in before.items())
    assert all(module.training for module in model.modules())
    for mode in (True, False):
        assert torch.equal(model.train(mode)(images), theirs.train(mode)(images))


def test_a_norm_that_is_used_twice_stays_one_and_others_stay_as_they_are():
    norm, other = nn.SyncBatchNorm(3), nn.BatchNorm2d(3)
    model = nn.Sequential(norm, other, norm)
    use_plain_batch_norms(model, torch.zeros(2, 3, 4, 4))
    assert model[0] is model[2]
    assert model[1] is other
    assert not hasattr(other, MARK)


@pytest.mark.parametrize("keys", [{}, {"momentum": None}, {"affine": False}])
def test_the_sums_are_those_of_batch_norm_in_values_gradients_and_statistics(keys, group):
    ours, images = volumes(**keys), torch.randn(4, 3, 8, 8)
    use_plain_batch_norms(ours, images)
    plain = copy.deepcopy(ours)
    for _ in range(2):
        with synchronized(ours):
            assert type(ours[1]) is not nn.BatchNorm2d
            found = ours(images)
        expected = plain(images)
        assert torch.allclose(found, expected, atol=1e-5)
        for y in (found, expected):
            (y**3).mean().backward()
    assert type(ours[1]) is nn.BatchNorm2d, "for tracing it is one again"
    for name, value in ours.state_dict().items():
        assert torch.allclose(value, plain.state_dict()[name], atol=1e-6), name
    for name, parameter in ours.named_parameters():
        assert torch.allclose(parameter.grad, plain.get_parameter(name).grad, atol=1e-5), name


def test_without_gradients_or_in_eval_no_process_waits_for_another():
    """There is no group to wait for: it would raise."""
    model, images = volumes(), torch.randn(2, 3, 8, 8)
    use_plain_batch_norms(model, images)
    with synchronized(model):
        model.eval()(images)
        with torch.no_grad():
            model.train()(images)
        with pytest.raises(ValueError, match="process group"):
            model(images)
