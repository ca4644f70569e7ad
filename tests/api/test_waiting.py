"""Waiting is explained in the same words everywhere: reason, since when, place, cause, and what ends it."""

import pytest
from trenchcoat_api import waiting
from trenchcoat_api.status import CriaStatus, StageStatus, State, TrenchcoatStatus, WaitingReason

SINCE = "2026-01-01T12:00:00Z"


def cria(index: int, reason: WaitingReason | None = WaitingReason.GPU, place: str = "2 of 3") -> CriaStatus:
    return CriaStatus(
        index=index,
        layers=f"{index}-{index}",
        state=State.WAITING if reason else State.RUNNING,
        waiting_reason=reason,
        waiting_since=SINCE,
        waiting_place=place,
        message="0 of 2 nodes have a free nvidia.com/gpu",
    )


def test_all_that_is_known_of_a_wait_is_told() -> None:
    assert waiting.explain(cria(4)) == (
        "waits for GPUs since 2026-01-01T12:00:00Z, place 2 of 3 among Trenchcoats that wait for them: 0 of "
        "2 nodes have a free nvidia.com/gpu; ends when GPUs that its pods may use come free and it is its "
        "turn"
    )


@pytest.mark.parametrize("reason", WaitingReason)
def test_every_reason_has_words(reason: WaitingReason) -> None:
    told = waiting.explain(cria(0, reason))
    assert told.startswith(f"waits for {waiting.WORDS[reason].waits_for} since {SINCE}")
    assert told.endswith(f"; ends {waiting.WORDS[reason].ends}")


def test_what_runs_waits_for_nothing() -> None:
    assert waiting.explain(cria(0, None)) == ""
    assert waiting.why(cria(0, None)) == "0 of 2 nodes have a free nvidia.com/gpu"


def test_a_run_tells_of_the_first_and_counts_the_others_that_wait_for_the_same() -> None:
    summary = StageStatus(name="cria", state=State.WAITING, waiting_reason=WaitingReason.GPU)
    crias = [cria(0, None), cria(1), cria(2), cria(3, WaitingReason.PARALLELISM)]
    told = waiting.of_run(TrenchcoatStatus(stages=[summary], crias=crias))
    assert told == f"Cria 1 (layers 1-1) {waiting.explain(crias[1])}; so does 1 other"
    assert len(waiting.by_reason(TrenchcoatStatus(stages=[summary], crias=crias))) == 2
