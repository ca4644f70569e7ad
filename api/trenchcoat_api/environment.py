"""What an administrator sets in a program's environment: variables TRENCHCOAT_*, read once at its start."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass


class SettingsError(ValueError):
    """A variable of the environment that cannot be used: says which and what it should hold."""


@dataclass(frozen=True, slots=True)
class Variables:
    """Reads them by name; one that is not set, or is blank, has its default."""

    environment: Mapping[str, str]

    def text(self, name: str, default: str) -> str:
        """What it holds, without blanks around it."""
        return self.environment.get(name, "").strip() or default

    def number(self, name: str, default: float, least: float, most: float = 1_000_000) -> float:
        """A number from `least` to `most`.

        Raises:
            SettingsError: it holds something else.
        """
        raw = self.text(name, str(default))
        try:
            value = float(raw)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise SettingsError(f"{name} is {raw!r}: set it to a number from {least:,.10g} to {most:,.10g}")
        return value

    def switch(self, name: str, *, default: bool) -> bool:
        """Whether it is true.

        Raises:
            SettingsError: it is neither true nor false.
        """
        raw = self.text(name, str(default).lower())
        if raw not in ("true", "false"):
            raise SettingsError(f"{name} is {raw!r}: set it to true or false")
        return raw == "true"

    def words(self, name: str) -> tuple[str, ...]:
        """The words between commas; none by default."""
        return tuple(word.strip() for word in self.text(name, "").split(",") if word.strip())

    def log_level(self, name: str, default: str) -> str:
        """The level that a log begins at, as `logging` calls it.

        Raises:
            SettingsError: it holds none that `logging` knows.
        """
        raw = self.text(name, default)
        if raw.upper() not in logging.getLevelNamesMapping():
            raise SettingsError(f"{name} is {raw!r}: set it to DEBUG, INFO, WARNING or ERROR")
        return raw.upper()
