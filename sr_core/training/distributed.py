"""Data-parallel training: every process takes an equal part of each batch, and gradients are averaged.

The mean of equal parts' gradients is the gradient of the mean over the whole batch, so that the number of processes
changes nothing but rounding. They are averaged as one flat vector after the backward pass, not by torch's
DistributedDataParallel: a network of a few megabytes gains little from overlapping the two, and it stays the plain
module that is compiled, averaged over time and saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from sr_core.config import TrainHRN
from sr_core.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """Which of how many processes this one is, as torchrun numbers them."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """Among the processes of this machine; the number of its GPU."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that validates, writes and logs."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """This process's GPU, or the CPU."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Meet the others, at the address that torchrun has set: by NCCL on GPUs, by Gloo on CPUs."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world == 1:
            yield
            return
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, rank=self.rank, world_size=self.world)
        yield
        # not after an error, when the others may not come: torchrun ends them
        distributed.destroy_process_group()

    def check(self, settings: TrainHRN) -> None:
        """Raises `ConfigError` when the processes cannot take equal parts of a batch."""
        if settings.batch_size % self.world:
            raise ConfigError(
                f"train_hrn.batch_size: found {settings.batch_size}, expected a multiple of the {self.world} processes"
            )

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.world
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, *flags: bool) -> list[bool]:
        """Which flags are set in any process. Waits for all of them."""
        if self.world == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.int32, device=self.device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def told(self, value: T) -> T:
        """The first process's `value`, in all of them."""
        if self.world == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]
