"""What would have the host wait for a GPU, seen without one."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select")
"""Operations for which the host waits, or that copy a number of the host to the device."""


class Waits(TorchDispatchMode):
    """Collects the operations within that would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note and call an operation."""
        if function.overloadpacket.__name__ in WAITS:
            self.found.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))
