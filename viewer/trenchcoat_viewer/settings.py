"""What an administrator sets for the viewer, read from the environment once at start."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self


class SettingsError(ValueError):
    """A variable of the environment that cannot be used: says which and what it should hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The viewer's settings."""

    port: int = 8090
    namespaces: tuple[str, ...] = ()
    """Namespaces whose Trenchcoats are shown; none means all."""
    audiences: tuple[str, ...] = ()
    """Audiences that tokens may be for; none leaves it to the API server, whose own it then is."""
    refresh_seconds: float = 10.0
    """How often, at most, the page of a run is drawn anew."""
    tls_folder: str = ""
    """Where tls.crt and tls.key lie; without, it speaks plain HTTP."""
    log_level: str = "INFO"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read TRENCHCOAT_* variables; what is not set keeps its default.

        Raises:
            SettingsError: a variable holds something else than it should.
        """

        def number(name: str, default: float, least: float, most: float) -> float:
            raw = environment.get(name, "").strip() or str(default)
            try:
                value = float(raw)
            except ValueError:
                value = -1.0
            if not least <= value <= most:
                raise SettingsError(f"{name} is {raw!r}: set it to a number from {least:g} to {most:g}")
            return value

        def words(name: str) -> tuple[str, ...]:
            return tuple(word.strip() for word in environment.get(name, "").split(",") if word.strip())

        base = cls()
        return cls(
            port=int(number("TRENCHCOAT_VIEWER_PORT", base.port, 1, 65535)),
            namespaces=words("TRENCHCOAT_NAMESPACES"),
            audiences=words("TRENCHCOAT_VIEWER_AUDIENCES"),
            refresh_seconds=number("TRENCHCOAT_VIEWER_REFRESH_SECONDS", base.refresh_seconds, 1, 3600),
            tls_folder=environment.get("TRENCHCOAT_VIEWER_TLS_FOLDER", "").strip(),
            log_level=_level(environment.get("TRENCHCOAT_LOG_LEVEL", "").strip() or base.log_level),
        )


def _level(name: str) -> str:
    if name.upper() not in logging.getLevelNamesMapping():
        raise SettingsError(f"TRENCHCOAT_LOG_LEVEL is {name!r}: set it to DEBUG, INFO, WARNING or ERROR")
    return name.upper()
