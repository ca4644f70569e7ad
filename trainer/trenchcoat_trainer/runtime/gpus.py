"""Whether GPUs are meant to be used, as far as that can be said without loading torch."""

import os

from trenchcoat_trainer.errors import BadInputError

ENV_DEVICE = "TRENCHCOAT_DEVICE"
"""Set to cpu where stages shall compute on the CPU although they were given GPUs."""


def is_cpu_meant() -> bool:
    """Whether GPUs are to be left alone.

    Raises:
        BadInputError: TRENCHCOAT_DEVICE is neither empty nor cpu.
    """
    wanted = os.environ.get(ENV_DEVICE, "")
    if wanted not in ("", "cpu"):
        raise BadInputError(f"{ENV_DEVICE} is {wanted!r}: set it to cpu, or not at all to use GPUs")
    return wanted == "cpu"
