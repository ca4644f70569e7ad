"""What the API server says no with."""

import json


class NoClusterError(Exception):
    """Nothing tells which API server to talk to, or what tells it cannot be used."""


class ApiError(Exception):
    """The API server said no, or said nothing."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class NotFoundError(ApiError):
    """There is no such object, or no such kind of object."""


class ConflictError(ApiError):
    """The object is another than was thought, or somebody else was quicker."""


class AlreadyExistsError(ConflictError):
    """The object is there already."""


class ForbiddenError(ApiError):
    """The operator's role does not allow it."""


_ERRORS: dict[int, type[ApiError]] = {403: ForbiddenError, 404: NotFoundError, 409: ConflictError}


def error_of(status: int, reason: str, data: bytes) -> ApiError:
    """The error that an answer stands for: its status, its reason phrase and its body."""
    message = data.decode(errors="replace")[:2000]
    try:
        answer = json.loads(data)
        reason, message = str(answer.get("reason") or reason), str(answer.get("message") or message)
    except (ValueError, AttributeError):
        pass  # a proxy's answer, which is no Status; its text says what there is to say
    if reason == "AlreadyExists":
        return AlreadyExistsError(status, reason, message)
    return _ERRORS.get(status, ApiError)(status, reason, message)
