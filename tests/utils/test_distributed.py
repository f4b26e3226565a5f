"""One process: nothing communicates, everything is its own. (Several processes: tests/test_torchrun.py.)"""

import copy

import pytest
import torch
from torch import nn

from tests import nets_of_processes
from utils import distributed
from utils.distributed import Processes
from utils.errors import UserError

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)


@pytest.fixture(autouse=True)
def outside_torchrun(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_is_the_main_one_and_gets_back_what_it_gives():
    value, model = object(), nn.Linear(2, 2)
    assert ALONE.is_main
    assert ALONE.any_flag_and_sum((True, False), 7) == ([True, False], 7)
    assert ALONE.sum(x for x in (1.5, 2.0)) == [1.5, 2.0]
    assert ALONE.broadcast_object(value) is value
    assert ALONE.from_main(lambda: value) is value
    assert ALONE.ddp(model, torch.zeros(1, 2)) is model
    ALONE.barrier()


def test_parameters_that_forward_does_not_reach_are_found_and_the_model_stays():
    images = torch.randn(2, 3, 16, 16)
    for make, expected in ((nets_of_processes.unused, True), (nets_of_processes.synced, False)):
        model = make(5).eval()
        before = copy.deepcopy(model.state_dict())
        assert distributed.leaves_parameters_out(model, images) == expected
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(module.training for module in model.modules())
        assert all(p.grad is None for p in model.parameters())


def test_other_libraries_synchronized_norms_are_refused_on_cpus():
    class Norm(nn.SyncBatchNorm):
        pass

    with pytest.raises(UserError, match="several processes train no kind of SyncBatchNorm on CPUs but torch's own"):
        Processes(0, 2, CPU).ddp(nn.Sequential(Norm(3)), torch.zeros(2, 3, 4, 4))


def test_buffers_of_one_process_stay():
    buffer = torch.arange(3.0)
    ALONE.broadcast_buffers([buffer])
    assert buffer.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("count", "world"), [(10, 1), (10, 3), (2, 4), (0, 2)])
def test_shards_are_disjoint_and_complete(count, world):
    shards = [Processes(rank, world, CPU).shard_indices(count).tolist() for rank in range(world)]
    assert sorted(i for shard in shards for i in shard) == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_the_first_process_alone_is_the_main_one():
    assert [Processes(rank, 3, CPU).is_main for rank in range(3)] == [True, False, False]


def test_processes_are_shown_with_their_device():
    assert str(ALONE) == "cpu"
    assert str(Processes(1, 4, CPU)) == "4 processes on cpu"


def test_ranks_are_those_of_torchrun(monkeypatch):
    assert (distributed.rank(), distributed.local_rank()) == (0, 0)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (distributed.rank(), distributed.local_rank()) == (5, 1)


def test_without_torchrun_no_process_group_is_joined():
    with distributed.joined(CPU) as processes:
        assert processes == ALONE
        assert not torch.distributed.is_initialized()


def test_rows_and_extremes_of_one_process_are_its_own():
    x = torch.randn(3, 2)
    assert distributed.all_gather_rows(x) is x
    least, greatest = distributed.all_reduce_minmax(x.amin(), x.amax())
    assert (least, greatest) == (x.amin(), x.amax())


def test_a_process_that_fails_waits_for_no_other(monkeypatch):
    ended = []
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: ended.append("destroyed"))
    monkeypatch.setattr(distributed.dist.distributed_c10d, "_abort_process_group", lambda: ended.append("aborted"))
    distributed.leave_at_once(torch.device("cuda", 1))
    distributed.leave_at_once(torch.device("cpu"))
    assert ended == ["aborted", "destroyed"]
