"""One try at an artifact, as far as it is the same whatever runs it."""

from dataclasses import dataclass

from trenchcoat_api.resource import Trenchcoat

from trenchcoat_operator.model.plan import Object
from trenchcoat_operator.works.graph import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at an artifact."""

    trenchcoat: Trenchcoat
    work: Work
    metadata: Object
    """Of the object that runs it."""
    template: Object
    """Of its pods: metadata and spec."""
    queued: bool
    """Whether Kueue says when it runs, so that it is made suspended."""
