"""A run as the API server tells it: from a Trenchcoat with its status alone."""

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from trenchcoat_api.resource import Trenchcoat

from trenchcoat_report.run import MAX_FORMER, Manner, Run


def run_of(trenchcoat: Trenchcoat) -> Run:
    """The run, as its status tells it."""
    created = trenchcoat.metadata.creation_timestamp
    now = datetime.now(UTC)
    return Run(
        trenchcoat=trenchcoat,
        began=datetime.fromisoformat(created) if created else now,
        told_at=now,
        manner=Manner.CLUSTER,
        store=f"s3://{trenchcoat.spec.store.bucket}/{trenchcoat.spec.store.prefix}",
        versions={"trenchcoat": version("trenchcoat")},
    )


def former(trenchcoat: Trenchcoat, others: Sequence[Trenchcoat]) -> list[Run]:
    """Other evaluated runs of the same model, the latest first, at most four."""
    alike = [
        other
        for other in others
        if other.metadata.name != trenchcoat.metadata.name
        and other.spec.model.source == trenchcoat.spec.model.source
        and other.status.perplexities
    ]
    runs = [run_of(other) for other in alike]
    return sorted(runs, key=lambda run: run.began, reverse=True)[:MAX_FORMER]
