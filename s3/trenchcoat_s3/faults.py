"""What it means when a call to an S3 store fails."""

import re
import ssl
from enum import Enum, auto
from http import HTTPStatus

import urllib3
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from trenchcoat_s3.proxies import UnusableProxyError

FAILURES = (MinioException, urllib3.exceptions.HTTPError)
"""What the client raises where a store, or the way to it, is at fault."""


class IdentityError(Exception):
    """No keys were given for who asks; the message holds no token."""


class Fault(Enum):
    """Kinds of failures, by what must be mended."""

    NO_OBJECT = auto()
    NO_BUCKET = auto()
    REFUSED = auto()
    """The access key is unknown, wrong or without the right."""
    NO_S3 = auto()
    """Something answers, though not as an S3 store does."""
    CLOCK = auto()
    """The store's clock and this machine's differ."""
    REGION = auto()
    """The bucket is in another region than was said."""
    TOO_LARGE = auto()
    """Something before the store takes no requests of this size."""
    FAILING = auto()
    """Something before the store, or the store itself, failed with a status alone."""
    PROXY = auto()
    """The proxy that the environment names does not let the request through, or is none."""
    IDENTITY = auto()
    """The STS gives no keys for the token that it was shown."""
    CERTIFICATE = auto()
    """The certificate of what answers is not trusted, or those to trust are none."""
    UNREACHABLE = auto()
    OTHER = auto()
    """The store says no for a reason of its own, such as SlowDown."""


_BY_CODE = {
    "NoSuchKey": Fault.NO_OBJECT,
    "NoSuchObject": Fault.NO_OBJECT,
    "NoSuchBucket": Fault.NO_BUCKET,
    "RequestTimeTooSkewed": Fault.CLOCK,
    "AuthorizationHeaderMalformed": Fault.REGION,
    "IllegalLocationConstraintException": Fault.REGION,
    "PermanentRedirect": Fault.REGION,
} | dict.fromkeys(
    (
        "AccessDenied",
        "AccountProblem",
        "AllAccessDisabled",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "InvalidTokenId",
        "SignatureDoesNotMatch",
    ),
    Fault.REFUSED,
)
_MESSAGE_LIMIT = 300
_PAGE_LIMIT = 10_000
_TAGS = re.compile(r"(?is)<(script|style).*?</\1>|<[^>]*>")


def fault_of(error: Exception) -> Fault:
    """What an error of the client, or of the connection under it, means."""
    match error:
        case S3Error():
            return _BY_CODE.get(error.code or "", Fault.OTHER)
        case InvalidResponseError() | ServerError():
            status = _status(error)
            if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
                return Fault.PROXY
            if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                return Fault.TOO_LARGE
            return Fault.FAILING if status >= HTTPStatus.INTERNAL_SERVER_ERROR else Fault.NO_S3
        case MinioException():
            return Fault.OTHER
        case IdentityError():
            return Fault.IDENTITY
        case UnusableProxyError():
            return Fault.PROXY
        case ssl.SSLError():
            return Fault.CERTIFICATE
        case urllib3.exceptions.MaxRetryError():
            return fault_of(error.reason) if error.reason is not None else Fault.UNREACHABLE
        case urllib3.exceptions.ProxyError():
            return Fault.PROXY
        case urllib3.exceptions.SSLError():
            return Fault.CERTIFICATE
        case urllib3.exceptions.HTTPError() | OSError():
            return Fault.UNREACHABLE
        case _:  # the client could not read the answer: XML that is none, or lacks what must be there
            return Fault.NO_S3


def is_untold(error: Exception) -> bool:
    """Whether this may be the client's own word for an answer to HEAD, which has no body to say why."""
    return isinstance(error, S3Error) and error.code in {"AccessDenied", "BadRequest", "MethodNotAllowed"}


def is_past_the_end(error: Exception) -> bool:
    """Whether a range of bytes was refused because the object ends before it."""
    if isinstance(error, S3Error):
        return error.code == "InvalidRange"
    return _status(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


def _status(error: Exception) -> int:
    """HTTP status of an answer that is none of S3's; 0 where there was no answer."""
    if isinstance(error, ServerError):
        return int(error.status_code)
    return int(error._code) if isinstance(error, InvalidResponseError) else 0


def root_cause(error: Exception) -> str:
    """What went wrong at the bottom of it, in a line that is the same each time."""
    cause: Exception = error
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        cause = error.reason
    if isinstance(cause, urllib3.exceptions.ProxyError):
        cause = cause.original_error  # such as: Tunnel connection failed: 403 Forbidden
    if isinstance(cause, InvalidResponseError):
        return _shortened(f"HTTP {_status(cause)}, {_as_text(cause._body or '') or 'without a word'}")
    # Connection objects print their address in memory, which would make every message a new one.
    return _shortened(" ".join(str(cause).rpartition(">: ")[2].split()) or type(cause).__name__)


def _as_text(page: str) -> str:
    """What a web page says, in one line."""
    return " ".join(_TAGS.sub(" ", page[:_PAGE_LIMIT]).split())


def _shortened(text: str) -> str:
    return text if len(text) <= _MESSAGE_LIMIT else text[: _MESSAGE_LIMIT - 1] + "…"
