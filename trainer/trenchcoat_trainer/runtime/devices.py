"""Which device a process computes on: its GPU, and the CPU only where that is meant."""

import json
import os
import sys
from collections.abc import Sequence

import torch
from trenchcoat_api.stage_size import stage_size

from trenchcoat_trainer.errors import StageError
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.gpus import ENV_DEVICE, is_cpu_meant

__all__ = ["ENV_DEVICE", "any_device", "choose_device", "tell_gpus", "usable_gpus"]


def usable_gpus() -> int:
    """GPUs that this process may use.

    Raises:
        BadInputError: TRENCHCOAT_DEVICE is neither empty nor cpu.
    """
    return 0 if is_cpu_meant() else torch.cuda.device_count()


def tell_gpus(arguments: Sequence[str]) -> int:
    """Print, as JSON, the bytes of memory of each GPU that can be used; a program, without arguments.

    It initialises CUDA, so that it is run in a process that ends.
    """
    if arguments:
        raise ValueError(f"there is nothing to tell of {arguments}")
    memory = [torch.cuda.get_device_properties(gpu).total_memory for gpu in range(usable_gpus())]
    sys.stdout.write(json.dumps(memory) + "\n")
    return 0


def any_device(rank: int) -> torch.device:
    """The GPU of a rank, or the CPU where there is none for it."""
    found = usable_gpus()
    local = _local_rank(rank, found)
    return torch.device("cuda", local) if local < found else torch.device("cpu")


def choose_device(context: StageContext) -> torch.device:
    """The GPU of this process; or the CPU, where the stage was given none or runs on this machine alone.

    Raises:
        StageError: the stage was given GPUs, but this process finds none; on another node it may.
        BadInputError: TRENCHCOAT_DEVICE is neither empty nor cpu.
    """
    device, found = any_device(context.rank), usable_gpus()
    is_meant = os.environ.get(ENV_DEVICE) == "cpu" or (context.folder is not None and not found)
    if device.type == "cpu" and not is_meant and stage_size(context.spec, context.artifact.stage).gpus:
        raise StageError(
            f"{context.artifact.name} was given a GPU for each of its processes, but number "
            f"{_local_rank(context.rank, found)} of this pod finds {found} that can be used: see to the "
            f"node's driver and the pod's runtimeClassName, or set {ENV_DEVICE} to cpu in spec.pods if the "
            "CPU is meant"
        )
    return device


def _local_rank(rank: int, found: int) -> int:
    return int(os.environ.get("LOCAL_RANK", rank % max(found, 1)))
