"""Why something waits, in the words that rows, events, conditions, plugin and report share."""

from collections.abc import Iterable
from typing import NamedTuple

from trenchcoat_api.status import (
    CriaStatus,
    StageStatus,
    State,
    TrenchcoatStatus,
    WaitingReason,
    Work,
)


class Words(NamedTuple):
    """What is said of one reason for waiting."""

    waits_for: str
    """What is waited for."""
    ends: str
    """What ends the wait."""
    queue: str = ""
    """What the place is one of; empty where nobody stands in a queue."""


WORDS = {
    WaitingReason.GPU: Words(
        "GPUs",
        "when GPUs that its pods may use come free and it is its turn",
        "Trenchcoats that wait for them",
    ),
    WaitingReason.PARALLELISM: Words(
        "the end of other Crias",
        "when one of those that run ends, or spec.scheduling.maxParallelCrias is raised",
        "its Crias that wait",
    ),
    WaitingReason.SCHEDULER: Words(
        "a node", "when the scheduler finds a node for its pods, or an autoscaler adds one"
    ),
    WaitingReason.REFUSED: Words(
        "leave to make its pods", "when the quota, limit or policy that refuses them lets them through"
    ),
    WaitingReason.QUEUE: Words("Kueue", "when Kueue admits it", "what waits in its LocalQueue"),
    WaitingReason.RETRY: Words("its next try", "by itself, when the back-off is over"),
    WaitingReason.CLEANUP: Words("the end of its former Job", "when that Job and its pods are gone"),
    WaitingReason.STORE: Words(
        "the store", "when the store can be used: the condition Accepted says what is wrong with it"
    ),
    WaitingReason.TRAINING_OPERATOR: Words(
        "the training operator",
        "when the training operator is installed, or spec.scheduling.distributed is IndexedJob",
    ),
    WaitingReason.SHARED: Words(
        "another Trenchcoat, which makes the same artifact", "when that artifact is complete, or given up"
    ),
    WaitingReason.PLAN: Words(
        "a person, for its plan does not fit", "when the spec is changed, or spec.plan.force is true"
    ),
    WaitingReason.GATE: Words(
        "a bound of spec.gates",
        "when what it bounds is measured and within it, or the bound is changed or overridden",
    ),
}


def explain(row: Work) -> str:
    """Reason, since when, place in the queue, cause, and what would end it; empty where it does not wait.

    Args:
        row: Of a stage or a Cria.
    """
    if row.state is not State.WAITING or row.waiting_reason is None:
        return ""
    words = WORDS[row.waiting_reason]
    told = f"waits for {words.waits_for}"
    if row.waiting_since:
        told += f" since {row.waiting_since}"
    if row.waiting_place:
        told += f", place {row.waiting_place}" + (f" among {words.queue}" if words.queue else "")
    if row.message:
        told += f": {row.message}"
    return f"{told}; ends {words.ends}"


def why(row: Work) -> str:
    """Why a row is in its state: how it waits if it does, else its message."""
    return explain(row) or row.message


def subject(row: Work) -> str:
    """What a row is about: a stage's name, or a Cria with its layers."""
    if isinstance(row, CriaStatus):
        return f"Cria {row.index} (layers {row.layers})"
    return row.name if isinstance(row, StageStatus) else ""


def together(rows: Iterable[Work]) -> str:
    """Of rows that wait for the same: the first explained, and how many others there are; empty of none."""
    waiting = [row for row in rows if explain(row)]
    if not waiting:
        return ""
    told = f"{subject(waiting[0])} {explain(waiting[0])}"
    others = len(waiting) - 1
    return told + (f"; so {'does 1 other' if others == 1 else f'do {others} others'}" if others else "")


def waiting_rows(status: TrenchcoatStatus) -> list[Work]:
    """Rows that wait, in order; the Crias in place of their stage, which sums them up."""
    rows: list[Work] = []
    for stage in status.stages:
        rows += status.crias if stage.name == "cria" and status.crias else [stage]
    return [row for row in rows if explain(row)]


def by_reason(status: TrenchcoatStatus) -> list[str]:
    """What a whole run waits for: a sentence for each reason, in the order of the rows."""
    rows = waiting_rows(status)
    reasons = dict.fromkeys(row.waiting_reason for row in rows)
    return [together(row for row in rows if row.waiting_reason is reason) for reason in reasons]


def of_run(status: TrenchcoatStatus) -> str:
    """The first of these sentences; empty where nothing waits."""
    return next(iter(by_reason(status)), "")
