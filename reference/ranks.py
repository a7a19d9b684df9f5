"""Several processes on one calibration set: each runs its share of the batches, and statistics are summed.

Every rank holds the model and solves every layer; forwards, which take most of a run's time, are shared
out. What crosses between ranks are sums and maxima over calibration data, so all ranks see the same
statistics and find the same codes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")

#: A rank may evaluate alone while the others wait for it.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """One process among ``count``, or alone.

    Example:
        >>> Ranks(rank=1, count=2).share(["a", "b", "c", "d"])
        ['b', 'd']
        >>> Ranks().total(torch.tensor([3.0]))  # alone, there is nothing to add
        tensor([3.])

    Chapter: none (plumbing: several processes)
    """

    rank: int = 0
    count: int = 1

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's items: whole batches, so that each is computed as it is by one process.

        Raises:
            ValueError: there are fewer items than ranks.
        """
        if len(items) < self.count:
            raise ValueError(
                f"{len(items)} calibration batches do not go round {self.count} processes; start fewer, or give "
                "more calibration text"
            )
        return list(items[self.rank :: self.count])

    def total(self, part: Tensor) -> Tensor:
        """Sum over ranks, in place where ``part`` is contiguous."""
        return self._reduce(part, distributed.ReduceOp.SUM)

    def largest(self, part: Tensor) -> Tensor:
        """Maximum over ranks, elementwise, in place where ``part`` is contiguous."""
        return self._reduce(part, distributed.ReduceOp.MAX)

    def wait(self) -> None:
        """Go on when all ranks are here."""
        if self.count > 1:
            distributed.barrier()

    def _reduce(self, part: Tensor, operation: distributed.ReduceOp.RedOpType) -> Tensor:
        if self.count > 1:
            part = part.contiguous()
            distributed.all_reduce(part, operation)
        return part


#: One process.
ALONE = Ranks()


def start() -> Ranks:
    """Join the processes that ``torchrun`` has started; alone if it has not.

    Example:
        >>> start()  # without torchrun
        Ranks(rank=0, count=1)

    Chapter: none (plumbing: several processes)
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def stop() -> None:
    """Leave the group that :func:`start` joined.

    Example:
        >>> ranks = start()
        >>> stop()
        >>> distributed.is_initialized()
        False

    Chapter: none (plumbing: several processes)
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
