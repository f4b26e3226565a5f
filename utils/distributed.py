"""Training with several processes (torchrun): their ranks, and what they communicate.

data.batch_size is the batch of all processes together. Each takes its share, so that learning rates and results are
those of one process. Only the first process writes, converts and measures. Without torchrun there is one process, and
nothing here communicates.
"""

import contextlib
import copy
import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import UserError
from utils.shared_dropout import drawn_together
from utils.sync_batch_norm import synchronized

T = TypeVar("T")
TIMEOUT = datetime.timedelta(hours=3)
"""How long the other processes wait while the first measures its engines. A process that dies is noticed at once."""


@dataclass(frozen=True)
class Processes:
    """The processes that train together, and which one this is.

    rank: of this process, 0 ... world_size - 1. device: where it trains.
    Methods that communicate must be called in every process. With one process they do nothing.
    """

    rank: int
    world_size: int
    device: torch.device

    def __str__(self) -> str:
        return str(self.device) if self.world_size == 1 else f"{self.world_size} processes on {self.device.type}"

    @property
    def is_main(self) -> bool:
        """Whether this is the first process, which writes and measures."""
        return self.rank == 0

    def any_flag_and_sum(self, flags: Sequence[bool], count: int) -> tuple[list[bool], int]:
        """(for each flag, whether any process sets it; the sum of the counts), in one all-reduce."""
        if self.world_size == 1:
            return list(flags), count
        found = torch.tensor([*flags, count], dtype=torch.int64, device=self.device)
        dist.all_reduce(found)
        *set_in, total = found.tolist()
        return [number > 0 for number in set_in], total

    def total(self, count: int) -> int | Tensor:
        """The sum of a count over all processes; with several a scalar tensor, so that nothing waits for it."""
        if self.world_size == 1:
            return count
        found = torch.full((), count, dtype=torch.int64, device=self.device)
        dist.all_reduce(found)
        return found

    def sum(self, numbers: Iterable[float]) -> list[float]:
        """The sum of each number over all processes, added in the order of the ranks."""
        if self.world_size == 1:
            return list(numbers)
        parts: list = [None] * self.world_size
        dist.all_gather_object(parts, list(numbers))
        return [sum(column) for column in zip(*parts, strict=True)]

    def broadcast_object(self, value: T) -> T:
        """The first process's value, in every process."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=self.device)
        return values[0]

    def from_main(self, make: Callable[[], T]) -> T:
        """What make() returns in the first process, which alone calls it; in every process."""
        values: list[Any] = [make() if self.is_main else None]
        if self.world_size > 1:
            dist.broadcast_object_list(values, device=self.device)
        return values[0]

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.world_size > 1:
            dist.barrier()

    def shard_indices(self, count: int) -> Tensor:
        """Indices of this process's share of `count` images. The shares are disjoint and complete."""
        return torch.arange(count)[self.rank :: self.world_size]

    def broadcast_buffers(self, tensors: Iterable[Tensor]) -> None:
        """Set the tensors to those of the first process, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def ddp(self, model: nn.Module, images: Tensor) -> nn.Module:
        """The model, wrapped so that its gradients are averaged over all processes. Its Parameters are shared.

        images: some to train on, which show the Parameters that forward does not reach. As in one process, these get
        no gradient and stay as they are; to look out for them takes time, and only their presence makes up for it.
        Raises UserError for what several processes cannot train.
        """
        if self.world_size == 1:
            return model
        if self.device.type == "cpu" and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
            raise UserError("several processes train no kind of SyncBatchNorm on CPUs but torch's own")
        where = None if self.device.type == "cpu" else [self.device]
        (leaves_out,), _ = self.any_flag_and_sum([leaves_parameters_out(model, images)], 0)
        return nn.parallel.DistributedDataParallel(model, device_ids=where, find_unused_parameters=leaves_out)

    @contextlib.contextmanager
    def as_one(self, model: nn.Module) -> Iterator[Callable[[int, int], None]]:
        """While it lasts, the model trains as in one process where its layers see more than an image at a time.

        Those are SyncBatchNorm and dropout. Yields a function to call at every step with (the seed that one process
        would have, this process's images).
        """
        if self.world_size == 1:
            yield lambda seed, images: None
            return
        with synchronized(model), drawn_together(model) as masks:

            def start_step(seed: int, images: int) -> None:
                if masks is not None:
                    masks.start(seed, images, self.any_flag_and_sum([], images)[1])

            yield start_step


def leaves_parameters_out(model: nn.Module, images: Tensor) -> bool:
    """Whether the logits of these images depend on fewer than all trainable Parameters. The model is not changed."""
    trial = copy.deepcopy(model).train()
    parameters = [p for p in trial.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(trial(images).float().sum(), parameters, allow_unused=True)
    return any(gradient is None for gradient in gradients)


def local_rank() -> int:
    """The rank of this process among those of its machine, as torchrun sets it."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_processes() -> int:
    """The number of processes on this machine, as torchrun sets it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def rank() -> int:
    """The rank of this process among all, as torchrun sets it."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """The number of processes that train together, as torchrun sets it."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started, for the duration of the block; without torchrun there is one."""
    world = world_size()
    if world == 1:
        yield Processes(0, 1, device)
        return
    backend = dist.get_default_backend_for_device(device)
    dist.init_process_group(backend, store=_store(), rank=rank(), world_size=world, timeout=TIMEOUT)
    try:
        yield Processes(rank(), world, device)
    except BaseException:
        leave_at_once(device)
        raise
    dist.destroy_process_group()


def leave_at_once(device: torch.device) -> None:
    """End this process's part, without waiting for what it has asked of others that may never answer."""
    if device.type == "cuda":  # NCCL's end waits for its kernels
        dist.distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()


def _store() -> dist.Store:
    """The store in which processes exchange their addresses.

    When torchrun restarts processes on one machine, it gives them the store of the dead ones, and a process that reads
    a dead one's address waits forever. So each start uses a separate key prefix. (Across machines the restart counts
    differ, and torch itself keeps the starts apart.)
    """
    store, _, _ = next(dist.rendezvous("env://"))
    one_machine = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store) if one_machine else store


def all_reduce_minmax(least: Tensor, greatest: Tensor) -> tuple[Tensor, Tensor]:
    """Element-wise minimum of `least` and maximum of `greatest` over all processes."""
    if dist.is_initialized():
        both = torch.stack([-least, greatest])
        dist.all_reduce(both, dist.ReduceOp.MAX)
        least, greatest = -both[0], both[1]
    return least, greatest


def all_gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of the whole batch; x itself if there is one process.

    Process i of n has rows i, i + n, i + 2n, ... of the batch, so the first processes may have one row more.
    """
    if not dist.is_initialized():
        return x
    sizes = [torch.zeros((), dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor(len(x), device=x.device))
    padded = x.new_zeros((int(max(sizes)), *x.shape[1:]))
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.stack(parts, 1).flatten(0, 1)[: int(sum(sizes))]
