"""The processes of one stage: joining them, and passing tensors and a wish to stop between them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store, _get_default_store

from trenchcoat_trainer.errors import StageError
from trenchcoat_trainer.runtime.stop import StopRequest

JOIN_TIMEOUT = timedelta(minutes=30)
"""Pods of one gang may have to wait for nodes and images for a while."""
_STOP = "trenchcoat/stop"
# NCCL notices within seconds that a rank of another node is gone; torch then waits for a dump of what it did,
# by default for so long that the rank held its GPU for more than a minute.
_DUMP_MILLISECONDS = ("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "1000")


@contextmanager
def joined(rank: int, world_size: int, device: torch.device, stop: StopRequest) -> Iterator[None]:
    """Join the other processes of the stage; does nothing for one alone.

    MASTER_ADDR and MASTER_PORT of the environment say where they meet. Others may never come, such as those
    of a gang that is deleted while its pods start: a signal ends the wait, and the process.

    Raises:
        StageError: they do not come together.
        PreemptedError: a stop was requested before.
    """
    if world_size == 1 or dist.is_initialized():
        yield
        return
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
            os.environ.setdefault(*_DUMP_MILLISECONDS)
        with stop.at_once():
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                rank=rank,
                world_size=world_size,
                timeout=JOIN_TIMEOUT,
            )
    except (RuntimeError, ValueError) as error:
        raise StageError(
            f"rank {rank} of {world_size} could not join the others at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} ({error})"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def tell_stop(stop: StopRequest) -> None:
    """Let the first rank know that this one was asked to stop."""
    if stop.requested and dist.is_initialized():
        key_value_store().set(_STOP, "1")


def told_stop(stop: StopRequest) -> bool:
    """Whether this rank, or one that has told, was asked to stop."""
    return stop.requested or (dist.is_initialized() and key_value_store().check([_STOP]))


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a contiguous tensor, to send or to receive: not every backend knows bfloat16."""
    return tensor.view(-1).view(torch.uint8)


def key_value_store() -> Store:
    """The key-value store of the ranks that have joined, which the first one holds."""
    return _get_default_store()
