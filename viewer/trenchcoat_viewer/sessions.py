"""Who has logged in: a random name in a cookie stands for a token, which never goes back to a browser."""

import secrets
import threading
import time
from collections.abc import Callable

IDLE_SECONDS = 12 * 3600.0
MOST = 1000
"""Sessions that are kept; those that were used last stay."""


class Sessions:
    """Tokens by the names of their sessions, in memory alone; safe between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._tokens: dict[str, tuple[float, str]] = {}

    def begin(self, token: str) -> str:
        """A new session for a token; returns its name."""
        name, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            fresh = {key: kept for key, kept in self._tokens.items() if now - kept[0] < IDLE_SECONDS}
            latest = sorted(fresh.items(), key=lambda item: item[1][0])[-(MOST - 1) :]
            self._tokens = {**dict(latest), name: (now, token)}
        return name

    def token(self, name: str) -> str:
        """The token of a session; empty where there is none, or it was idle for too long."""
        now = self._clock()
        with self._lock:
            used, token = self._tokens.get(name, (now, ""))
            if not token or now - used >= IDLE_SECONDS:
                self._tokens.pop(name, None)
                return ""
            self._tokens[name] = now, token
        return token

    def end(self, name: str) -> None:
        """Forget a session."""
        with self._lock:
            self._tokens.pop(name, None)
