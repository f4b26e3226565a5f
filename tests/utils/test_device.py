"""The device of a run: the accelerator if there is one, and one for each process."""

import pytest
import torch

from utils import device
from utils.errors import UserError

CUDA = torch.device("cuda")


def accelerators(monkeypatch, count: int) -> list[int]:
    """Pretend that this machine has so many; returns the numbers of those that were chosen."""
    chosen = []
    found = torch.device("cuda") if count else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    return chosen


def test_auto_is_the_cpu_without_an_accelerator(monkeypatch):
    accelerators(monkeypatch, 0)
    assert device.find("auto") == device.find("cpu") == torch.device("cpu")


def test_auto_is_the_accelerator(monkeypatch):
    accelerators(monkeypatch, 1)
    assert device.find("auto") == torch.device("cuda")


def test_each_process_has_a_separate_accelerator(monkeypatch):
    chosen = accelerators(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device.find("auto") == torch.device("cuda", 1)
    assert chosen == [1]


@pytest.mark.parametrize(("processes", "count"), [(2, 1), (3, 2), (8, 4)])
@pytest.mark.parametrize("rank", [0, 1])
def test_more_processes_than_accelerators_are_refused_in_each_of_them(rank, processes, count, monkeypatch):
    """The first would wait for the others, for hours."""
    chosen = accelerators(monkeypatch, count)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    with pytest.raises(UserError, match=rf"^run.device: {processes} processes on .*, and {count} of cuda for"):
        device.find("auto")
    assert chosen == []
    assert device.find("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cpuu", "", "meta"])
def test_what_is_not_there_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=rf"^run.device: '{name}' is not available here \([^\n]*\)$"):
        device.find(name)


CUDA = torch.device("cuda")


@pytest.mark.parametrize(("name", "ahead"), [("cpu", 0), ("cuda", 1)])
def test_an_accelerator_gets_each_batch_a_step_early(name, ahead):
    made: list[int] = []
    batches = device.prefetched((made.append(i) or i for i in range(4)), torch.device(name))
    seen = [(i, len(made)) for i in batches]
    assert seen == [(i, min(4, i + 1 + ahead)) for i in range(4)]
    assert list(device.prefetched(iter([]), torch.device(name))) == []


class Copied:
    """Stands for a tensor, and keeps how it was copied."""

    def to(self, where, non_blocking):
        return where, non_blocking


def test_only_copies_from_pinned_memory_are_not_waited_for():
    assert [device.copied(Copied(), to) for to in (device.CPU, CUDA)] == [(device.CPU, False), (CUDA, True)]
    assert [device.is_pinned_for(to) for to in (device.CPU, CUDA)] == [False, True]


@pytest.fixture
def as_before():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("wanted", [True, False])
def test_tf32_only_on_request(wanted, as_before):
    of_cpus = torch.backends.mkldnn.fp32_precision
    device.use_tf32(wanted, CUDA)
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is wanted
    assert torch.backends.mkldnn.fp32_precision == of_cpus
    assert torch.get_float32_matmul_precision() == ("high" if wanted else "highest"), "torch's own checks still work"


def test_what_has_no_tf32_is_told():
    device.use_tf32(False, device.CPU)
    with pytest.raises(UserError, match=r"^run.tf32: only CUDA has TensorFloat-32, and this run trains on cpu$"):
        device.use_tf32(True, device.CPU)


def test_products_of_integers_are_exact_on_a_gpu_for_a_while(as_before):
    device.use_tf32(True, CUDA)
    with device.exact_products(CUDA):
        assert not torch.backends.cudnn.enabled
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.enabled
    assert torch.backends.cuda.matmul.allow_tf32
    with device.exact_products(device.CPU):
        assert torch.backends.cudnn.enabled


def test_numbers_are_read_at_every_step_only_where_nothing_waits_for_it():
    assert device.steps_between_reads(torch.device("cpu")) == 1
    assert device.steps_between_reads(torch.device("cuda", 1)) == device.STEPS_BETWEEN_READS > 1
