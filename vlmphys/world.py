"""The processes of a training run: who this one is, and how they agree. torch.distributed alone, whatever the engine."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from vlmphys.config import TrainConfig
from vlmphys.heap import keep_freed_memory

# How long ranks wait for one another. NCCL's own limit is 10 minutes, in which the first rank may still be hashing all packed data, writing
# a checkpoint or a model of many GiB alone.
PATIENCE = timedelta(hours=1)


class Agreed(ValueError):
    """A problem that all ranks raise alike, because they told each other: one voice is enough."""


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and speaks to the terminal."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a small tensor over all ranks, as a new tensor on the CPU. Every rank must call it."""
        if self.size == 1:
            return values.to("cpu", copy=True)
        total = values.to(self.device, copy=True)
        distributed.all_reduce(total)
        return total.cpu()

    def gather_texts(self, texts: list[str]) -> list[str]:
        """The texts of all ranks. Every rank must call it."""
        if self.size == 1:
            return texts
        everyone: list[list[str]] = [[] for _ in range(self.size)]
        distributed.all_gather_object(everyone, texts)
        return [text for part in everyone for text in part]

    def agree(self, problems: list[str]) -> None:
        """Raise `Agreed` on all ranks where any of them has a problem, naming each problem once. Every rank must call it, and waits for
        the others."""
        found = self.gather_texts(problems)
        if found:
            raise Agreed("; ".join(dict.fromkeys(found)))

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank. Every rank must call it."""
        return bool(self.sum(torch.tensor([float(flag)]))[0] > 0)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Close the connection, when all ranks do: it may wait for the others (NCCL)."""
        if distributed.is_initialized():
            distributed.destroy_process_group()


def place() -> tuple[int, bool]:
    """Number of ranks and whether this is the first, as the launcher's environment says; nothing is connected."""
    return int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0)) == 0


def connect(config: TrainConfig) -> World:
    """Join the processes that a launcher (`deepspeed`, `torchrun`) started; without one, be the only process.

    Raises ValueError where the environment speaks of several ranks and not of where they meet.
    """
    rank, (size, _) = int(os.environ.get("RANK", 0)), place()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
        if "OMP_NUM_THREADS" not in os.environ:
            # Without this each rank would use every core, and two ranks would be slower than one.
            local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or size)
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))
    if size > 1 or config.engine in ("deepspeed", "fsdp"):
        if "MASTER_ADDR" not in os.environ:
            if size > 1:
                raise ValueError(f"WORLD_SIZE is {size}, but MASTER_ADDR is not set: start the ranks with `deepspeed` or `torchrun`, "
                                 "or unset WORLD_SIZE to train in one process")
            os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0",
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())})
        # Naming the GPU spares nccl guessing it; a single rank has no peer to reach (deepspeed/comm/torch.py does the same).
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE,
                                       device_id=device if on_gpu and size > 1 else None)
    return World(rank, size, device)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
