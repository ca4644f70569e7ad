"""Hidden states on their way from the device to the host, while the next ones are computed."""

import torch

from trenchcoat_trainer.checkpoints.finite_watch import FiniteWatch


class HostCopy:
    """Tensors of a device on the host, copied while the device goes on; on a CPU at once."""

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        """`stream`: of the copies, as `copy_stream` makes it."""
        self._stream = stream
        self._copied: torch.cuda.Event | None = None

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return memory of the host that the device can write to by itself."""
        return torch.empty(shape, dtype=dtype, pin_memory=self._stream is not None)

    def put(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy `source`, as it is once the device comes here, into `target`, memory of `empty`.

        Nothing may be written to `source` afterwards: it is read while the device goes on computing.
        """
        if self._stream is None:
            target.copy_(source)
            return
        self._stream.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            self._copied = torch.cuda.Event(blocking=True)  # who waits leaves the processor to others
            self._copied.record()
        source.record_stream(self._stream)  # or its memory could be used anew before

    def wait(self) -> None:
        """Wait until everything that was put has come; any thread may."""
        if self._copied is not None:
            self._copied.synchronize()


def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a stream for copies to the host beside what a GPU computes; None for a CPU."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


class Noted:
    """What was noted of states so far, on its way to the host."""

    def __init__(self, watch: FiniteWatch, stream: torch.cuda.Stream | None) -> None:
        """Copy it, as it is once the device comes here, behind what else `stream` copies."""
        self._watch = watch
        self._copy = HostCopy(stream)
        noted = watch.noted.clone()  # which is noted on
        self._noted = self._copy.empty(tuple(noted.shape), torch.bool)
        self._copy.put(self._noted, noted)

    def check(self) -> None:
        """Wait until the device has come there; raises BadInputError where states are not finite."""
        self._copy.wait()
        self._watch.check(self._noted)


class Hidden:
    """Hidden states of one object, copied to the host batch by batch while the device computes the next."""

    _noted: Noted

    def __init__(
        self, watch: FiniteWatch, stream: torch.cuda.Stream | None, sequences: int, like: torch.Tensor
    ) -> None:
        """Make room for `sequences` such as those of `like`, [batch, tokens, hidden size]."""
        self._watch, self._stream = watch, stream
        self._copy = HostCopy(stream)
        self.states = self._copy.empty((sequences, *like.shape[1:]), like.dtype)
        """[sequences, tokens, hidden size]; complete after `check`."""

    def put(self, row: int, hidden: torch.Tensor) -> None:
        """Copy a batch to where it belongs, and what was noted of it."""
        self._copy.put(self.states[row : row + len(hidden)], hidden)
        self._noted = Noted(self._watch, self._stream)

    def check(self) -> None:
        """Wait for the states; raises BadInputError where they are not finite."""
        self._copy.wait()
        self._noted.check()
