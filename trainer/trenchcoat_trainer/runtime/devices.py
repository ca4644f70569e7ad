"""Which device a process computes on: its GPU, and the CPU only where that is meant."""

import os

import torch
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage

from trenchcoat_trainer.errors import BadInputError, StageError
from trenchcoat_trainer.runtime.context import StageContext

ENV_DEVICE = "TRENCHCOAT_DEVICE"
"""Set to cpu where stages shall compute on the CPU although they were given GPUs."""


def usable_gpus() -> int:
    """GPUs that this process may use.

    Raises:
        BadInputError: TRENCHCOAT_DEVICE is neither empty nor cpu.
    """
    wanted = os.environ.get(ENV_DEVICE, "")
    if wanted not in ("", "cpu"):
        raise BadInputError(f"{ENV_DEVICE} is {wanted!r}: set it to cpu, or not at all to use GPUs")
    return 0 if wanted == "cpu" else torch.cuda.device_count()


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
    if device.type == "cpu" and not is_meant and _gpus_given(context.spec, context.artifact.stage):
        raise StageError(
            f"{context.artifact.name} was given a GPU for each of its processes, but number "
            f"{_local_rank(context.rank, found)} of this pod finds {found} that can be used: see to the "
            f"node's driver and the pod's runtimeClassName, or set {ENV_DEVICE} to cpu in spec.pods if the "
            "CPU is meant"
        )
    return device


def _local_rank(rank: int, found: int) -> int:
    return int(os.environ.get("LOCAL_RANK", rank % max(found, 1)))


def _gpus_given(spec: TrenchcoatSpec, stage: Stage) -> int:
    """GPUs of each of the stage's pods, as the operator asks for them."""
    if stage is Stage.COLLECT:
        return spec.collect.gpus_per_node
    return spec.stitch.gpus_per_node if stage in (Stage.STITCH, Stage.ADAPT) else 1
