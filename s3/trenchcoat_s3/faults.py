"""What it means when a call to an S3 store fails."""

from enum import Enum, auto

import urllib3
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

FAILURES = (MinioException, urllib3.exceptions.HTTPError)
"""What the client raises where a store, or the way to it, is at fault."""


class Fault(Enum):
    """Kinds of failures, by what must be mended."""

    NO_OBJECT = auto()
    NO_BUCKET = auto()
    REFUSED = auto()
    """The access key is unknown, wrong or without the right."""
    NO_S3 = auto()
    """Something answers, though not as an S3 store does."""
    UNREACHABLE = auto()
    OTHER = auto()
    """The store says no for a reason of its own, such as SlowDown."""


_BY_CODE = {
    "NoSuchKey": Fault.NO_OBJECT,
    "NoSuchObject": Fault.NO_OBJECT,
    "NoSuchBucket": Fault.NO_BUCKET,
} | dict.fromkeys(
    (
        "AccessDenied",
        "AccountProblem",
        "AllAccessDisabled",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "InvalidTokenId",
        "SignatureDoesNotMatch",
    ),
    Fault.REFUSED,
)
_MESSAGE_LIMIT = 300


def fault_of(error: Exception) -> Fault:
    """What an error of the client, or of the connection under it, means."""
    match error:
        case S3Error():
            return _BY_CODE.get(error.code or "", Fault.OTHER)
        case InvalidResponseError() | ServerError():
            return Fault.NO_S3
        case urllib3.exceptions.HTTPError() | OSError():
            return Fault.UNREACHABLE
        case _:
            return Fault.OTHER


def root_cause(error: Exception) -> str:
    """What went wrong at the bottom of it, in a line that is the same each time."""
    cause: Exception = error
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        cause = error.reason
    # Connection objects print their address in memory, which would make every message a new one.
    text = str(cause).rpartition(">: ")[2] or type(cause).__name__
    return text if len(text) <= _MESSAGE_LIMIT else text[: _MESSAGE_LIMIT - 1] + "…"
