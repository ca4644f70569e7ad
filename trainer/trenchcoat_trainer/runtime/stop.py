"""The wish of the cluster or of a person that a stage stop, noticed between two steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trenchcoat_trainer.errors import PreemptedError


class StopRequest:
    """Becomes true on SIGTERM (preemption, suspension), SIGINT (Ctrl-C) or SIGHUP (the terminal is gone)."""

    _listens = False

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        """Take over these signals of this process, SIGHUP unless nohup did; call from the main thread."""
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, self._note)
        self._listens = True

    def check(self) -> None:
        """Raise PreemptedError if a stop was requested; call where nothing is left unsaved."""
        if self.requested:
            raise PreemptedError("stopped on request; what is done is saved, the next start goes on from it")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let SIGTERM end this process for as long as it waits where Python hears of no signal.

        Only where nothing is unsaved; the exit code, 143 to a shell, says that it was asked to end.

        Raises:
            PreemptedError: it was asked to before.
        """
        if not self._listens:
            yield
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            self.check()
            yield
        finally:
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        # A second Ctrl-C of an impatient person ends the process at once.
        signal.signal(signal.SIGINT, signal.default_int_handler)
