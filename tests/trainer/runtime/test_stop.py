"""Which signals are a wish to stop."""

import os
import signal
from collections.abc import Iterator

import pytest
from trenchcoat_trainer.errors import PreemptedError
from trenchcoat_trainer.runtime.stop import StopRequest

ASKED_BY = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Those of this process, which are put back."""
    before = {number: signal.getsignal(number) for number in ASKED_BY}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ASKED_BY)
def test_a_signal_is_noted(number: signal.Signals) -> None:
    stop = StopRequest()
    stop.listen()
    stop.check()
    os.kill(os.getpid(), number)
    with pytest.raises(PreemptedError, match="stopped on request"):
        stop.check()


def test_what_nohup_has_ignored_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    stop.listen()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not stop.requested
