"""What an administrator sets for the viewer, read from the environment once at start."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from trenchcoat_api.environment import Variables


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

        variables, base = Variables(environment), cls()
        return cls(
            port=int(variables.number("TRENCHCOAT_VIEWER_PORT", base.port, 1, 65535)),
            namespaces=variables.words("TRENCHCOAT_NAMESPACES"),
            audiences=variables.words("TRENCHCOAT_VIEWER_AUDIENCES"),
            refresh_seconds=variables.number(
                "TRENCHCOAT_VIEWER_REFRESH_SECONDS", base.refresh_seconds, 1, 3600
            ),
            tls_folder=variables.text("TRENCHCOAT_VIEWER_TLS_FOLDER", base.tls_folder),
            log_level=variables.log_level("TRENCHCOAT_LOG_LEVEL", base.log_level),
        )
