"""Who asks, and what they may see: the API server's word, kept for some seconds."""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from trenchcoat_api import constants
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.kinds import SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS

KEPT_SECONDS = 20.0
"""So long a right that was taken away, or a token that was revoked, may still count."""
_MOST = 4096
"""Answers that are kept, at most."""

Key = TypeVar("Key")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class User:
    """Who a token stands for, as the API server says."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


class _Kept(Generic[Key, Answer]):
    """Answers, each for some seconds; safe between threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._answers: dict[Key, tuple[float, Answer]] = {}

    def get(self, key: Key, ask: Callable[[], Answer]) -> Answer:
        now = self._clock()
        with self._lock:
            known = self._answers.get(key)
        if known is not None and now - known[0] < KEPT_SECONDS:
            return known[1]
        answer = ask()
        with self._lock:
            if len(self._answers) >= _MOST:
                self._answers.clear()
            self._answers[key] = now, answer
        return answer


class Access:
    """Asks by TokenReview and SubjectAccessReview."""

    def __init__(
        self, cluster: Cluster, audiences: tuple[str, ...], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`audiences` are those that tokens may be for; none leaves it to the API server."""
        self._cluster, self._audiences = cluster, audiences
        self._users: _Kept[str, User | None] = _Kept(clock)
        self._rights: _Kept[tuple[User, str, str], bool] = _Kept(clock)

    def user(self, token: str) -> User | None:
        """Who a token stands for; None where the API server does not take it.

        Raises:
            ApiError: it could not be asked.
        """
        digest = hashlib.sha256(token.encode()).hexdigest()  # no token is kept here
        return self._users.get(digest, lambda: self._review(token))

    def may_see(self, user: User, namespace: str, name: str = "") -> bool:
        """Whether somebody may get the Trenchcoats of a namespace, or one of them.

        Raises:
            ApiError: the API server could not be asked.
        """
        return (
            self._may_get(user, "", "")
            or self._may_get(user, namespace, "")
            or bool(name and self._may_get(user, namespace, name))
        )

    def _may_get(self, user: User, namespace: str, name: str) -> bool:
        return self._rights.get((user, namespace, name), lambda: self._ask(user, namespace, name))

    def _review(self, token: str) -> User | None:
        spec: dict[str, Any] = {"token": token}
        if self._audiences:
            spec["audiences"] = list(self._audiences)
        status = self._cluster.review(TOKEN_REVIEWS, spec)
        # One that does not know of audiences names none, and has looked at its own alone.
        meant = not self._audiences or bool(set(self._audiences) & set(status.get("audiences") or ()))
        return _user(status.get("user") or {}) if status.get("authenticated") is True and meant else None

    def _ask(self, user: User, namespace: str, name: str) -> bool:
        attributes = {
            "group": constants.GROUP,
            "resource": constants.PLURAL,
            "verb": "get",
            "namespace": namespace,
            "name": name,
        }
        spec = {
            "user": user.name,
            "uid": user.uid,
            "groups": list(user.groups),
            "extra": {key: list(values) for key, values in user.extra},
            "resourceAttributes": attributes,
        }
        return self._cluster.review(SUBJECT_ACCESS_REVIEWS, spec).get("allowed") is True


def _user(told: Mapping[str, Any]) -> User | None:
    name = str(told.get("username") or "")
    if not name:
        return None
    return User(
        name=name,
        uid=str(told.get("uid") or ""),
        groups=tuple(told.get("groups") or ()),
        extra=tuple(sorted((key, tuple(values)) for key, values in (told.get("extra") or {}).items())),
    )
