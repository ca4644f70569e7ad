"""Exit codes of the stage programs: how a stage tells the operator what kind of failure it met."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a stage program's exit status means; the operator's retry policy rests on it."""

    OK = 0
    """What was asked for is there."""
    FAILED = 1
    """Anything not told apart below: retried up to the limit."""
    BAD_INPUT = 64
    """The model, data or spec cannot work: never retried, reported as it is."""
    DIVERGED = 65
    """The loss became NaN or passed its bound: never retried."""
    OUT_OF_MEMORY = 66
    """The device or the container ran out of memory: never retried, the message says what to change."""
    STORE_UNAVAILABLE = 69
    """The store could not be reached or refused the credentials: retried."""
    PREEMPTED = 75
    """SIGTERM arrived; a checkpoint was written: retried free of charge."""
    TERMINATED = 143
    """SIGTERM ended it before it had begun, so that nothing was lost: retried free of charge."""
