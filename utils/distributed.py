"""Several processes that train one model (torchrun): who is who, and what they tell each other.

data.batch_size is the batch of all processes together and each takes its share, so that rates and results are those of
one process. The first process alone writes, converts and measures. Without torchrun there is one process, and nothing
here communicates.
"""

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
TIMEOUT = datetime.timedelta(hours=3)
"""How long the others wait while the first measures its engines; a process that died is noticed at once."""


@dataclass(frozen=True)
class Processes:
    """rank: this process of `world`; device: where it trains."""

    rank: int
    world_size: int
    device: torch.device

    def __str__(self) -> str:
        return str(self.device) if self.world_size == 1 else f"{self.world_size} processes on {self.device.type}"

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any_flag_and_sum(self, flags: Sequence[bool], count: int) -> tuple[list[bool], int]:
        """Whether each flag is up in any process, and the sum of the counts: one message, to be sent by all."""
        if self.world_size == 1:
            return list(flags), count
        found = torch.tensor([*flags, count], dtype=torch.int64, device=self.device)
        dist.all_reduce(found)
        *up, total = found.tolist()
        return [number > 0 for number in up], total

    def sum(self, numbers: Iterable[float]) -> list[float]:
        """The sums over all processes."""
        if self.world_size == 1:
            return list(numbers)
        parts: list = [None] * self.world_size
        dist.all_gather_object(parts, list(numbers))
        return [sum(column) for column in zip(*parts, strict=True)]

    def broadcast_object(self, value: T) -> T:
        """The first process's value. To be called in all."""
        if self.world_size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, device=self.device)
        return held[0]

    def barrier(self) -> None:
        """Wait for all."""
        if self.world_size > 1:
            dist.barrier()

    def shard_indices(self, count: int) -> Tensor:
        """The indexes of this process's share of so many images: none twice, none left out."""
        return torch.arange(self.rank, count, self.world_size)

    def broadcast_buffers(self, tensors: Iterable[Tensor]) -> None:
        """Make them the first process's, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def ddp(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over all processes. Its own Parameters are the ones that train."""
        if self.world_size == 1:
            return model
        where = None if self.device.type == "cpu" else [self.device]
        return nn.parallel.DistributedDataParallel(model, device_ids=where)


def local_rank() -> int:
    """The number of this process on its machine, as torchrun gives it."""
    return int(os.environ.get("LOCAL_RANK", 0))


def rank() -> int:
    return int(os.environ.get("RANK", 0))


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Meet the other processes that torchrun started, until all is done; alone without it."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Processes(0, 1, device)
        return
    backend = dist.get_default_backend_for_device(device)
    dist.init_process_group(backend, store=_store(), rank=rank(), world_size=world, timeout=TIMEOUT)
    try:
        yield Processes(rank(), world, device)
    finally:
        dist.destroy_process_group()


def _store() -> dist.Store:
    """Where processes leave their addresses for each other.

    A torchrun that starts them again on its machine gives them the store that the dead have written to, and whoever
    reads an address of theirs waits for ever: each start has keys of its own. (Across machines starts are not counted
    alike, and it is torch's to tell them apart.)
    """
    store, _, _ = next(dist.rendezvous("env://"))
    one_machine = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store) if one_machine else store


def all_reduce_minmax(least: Tensor, greatest: Tensor) -> tuple[Tensor, Tensor]:
    """The least and greatest over all processes."""
    if dist.is_initialized():
        both = torch.stack([-least, greatest])
        dist.all_reduce(both, dist.ReduceOp.MAX)
        least, greatest = -both[0], both[1]
    return least, greatest


def all_gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes, as one process that had the whole batch would have them; x itself if alone.

    Each process has every world-th row of the batch, so that the first ones may have one row more.
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
