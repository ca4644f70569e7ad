"""Which Trenchcoat is meant."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """A Trenchcoat."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
