"""Failures of a stage, by what the operator should do about them.

Every message is one sentence for people: what is at fault, and the remedy.
"""

from trenchcoat_api.exitcodes import ExitCode


class StageError(Exception):
    """A stage cannot go on; retried up to the spec's limit unless a subclass says otherwise."""

    exit_code: ExitCode = ExitCode.FAILED


class BadInputError(StageError):
    """The model, the text or the spec cannot work: never retried."""

    exit_code = ExitCode.BAD_INPUT


class MissingInputError(StageError):
    """The artifact of an earlier stage is not complete; the operator starts stages in order."""


class CorruptObjectError(StageError):
    """An object's size or content is not what its manifest says; the message names the object."""


class DivergedError(StageError):
    """A loss became NaN or passed its bound: never retried."""

    exit_code = ExitCode.DIVERGED


class OutOfMemoryError(StageError):
    """The device ran out of memory; the message says which setting to change. Never retried."""

    exit_code = ExitCode.OUT_OF_MEMORY


class PreemptedError(StageError):
    """The stage was asked to stop and has saved what it needs to go on: retried free of charge."""

    exit_code = ExitCode.PREEMPTED


class StoreError(StageError):
    """The store could not be reached, refused the credentials or lacks the bucket: retried."""

    exit_code = ExitCode.STORE_UNAVAILABLE


class NotFoundError(StageError):
    """There is no object of this name.

    Attributes:
        path: Key of the object.
    """

    def __init__(self, path: str, place: str) -> None:
        super().__init__(f"object {path} is not in {place}: it was deleted or never written")
        self.path = path
