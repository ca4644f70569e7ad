"""Hidden states on their way from the device to the host, while the next ones are computed."""

import torch

from trenchcoat_trainer.checkpoints.finite_watch import FiniteWatch


class HostCopy:
    """Tensors of a device on the host, copied while the device goes on; on a CPU at once."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._copied: torch.cuda.Event | None = None

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return memory of the host that the device can write to by itself."""
        return torch.empty(shape, dtype=dtype, pin_memory=self._on_gpu)

    def put(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy `source`, as it is once the device comes here, into `target`, memory of `empty`."""
        target.copy_(source, non_blocking=True)
        if self._on_gpu:
            self._copied = torch.cuda.Event(blocking=True)  # who waits leaves the processor to others
            self._copied.record()

    def wait(self) -> None:
        """Wait until everything that was put has come; any thread may."""
        if self._copied is not None:
            self._copied.synchronize()


class Noted:
    """What was noted of states so far, on its way to the host."""

    def __init__(self, watch: FiniteWatch) -> None:
        """Copy it, as it is once the device comes here."""
        self._watch = watch
        self._copy = HostCopy(watch.noted.device)
        self._noted = self._copy.empty(tuple(watch.noted.shape), torch.bool)
        self._copy.put(self._noted, watch.noted)

    def check(self) -> None:
        """Wait until the device has come there; raises BadInputError where states are not finite."""
        self._copy.wait()
        self._watch.check(self._noted)


class Hidden:
    """Hidden states of one object, copied to the host batch by batch while the device computes the next."""

    _noted: Noted

    def __init__(self, watch: FiniteWatch, sequences: int, like: torch.Tensor) -> None:
        """Make room for `sequences` such as those of `like`, [batch, tokens, hidden size]."""
        self._watch = watch
        self._copy = HostCopy(like.device)
        self.states = self._copy.empty((sequences, *like.shape[1:]), like.dtype)
        """[sequences, tokens, hidden size]; complete after `check`."""

    def put(self, row: int, hidden: torch.Tensor) -> None:
        """Copy a batch to where it belongs, and what was noted of it."""
        self._copy.put(self.states[row : row + len(hidden)], hidden)
        self._noted = Noted(self._watch)

    def check(self) -> None:
        """Wait for the states; raises BadInputError where they are not finite."""
        self._copy.wait()
        self._noted.check()
