"""A row keeps what it waited for, and since when it waits for the same."""

from datetime import UTC, datetime, timedelta

from trenchcoat_api.status import MAX_WAITS, StageStatus, State, WaitingReason, WaitStatus
from trenchcoat_operator.reconcile.telling.waits import told

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def after(
    seconds: int, former: StageStatus | None, reason: WaitingReason | None, why: str = ""
) -> StageStatus:
    values = {"waiting_reason": reason, "message": why}
    values |= told(values, former, NOON + timedelta(seconds=seconds))
    return StageStatus(name="shard", state=State.WAITING if reason else State.RUNNING, **values)


def test_a_wait_that_goes_on_keeps_its_beginning_and_its_latest_cause() -> None:
    row = after(30, after(0, None, WaitingReason.GPU, "none free"), WaitingReason.GPU, "kept for a gang")
    assert row.waiting_since == "2026-01-01T12:00:00Z"
    assert row.waits == [
        WaitStatus(reason=WaitingReason.GPU, since="2026-01-01T12:00:00Z", message="kept for a gang")
    ]


def test_a_wait_that_is_over_is_kept_with_its_end_and_the_next_one_begins() -> None:
    row = after(0, None, WaitingReason.QUEUE)
    row = after(10, row, None)
    row = after(20, row, None)
    row = after(40, row, WaitingReason.QUEUE)
    assert [(wait.since[-4:], wait.until[-4:]) for wait in row.waits] == [(":00Z", ":10Z"), (":40Z", "")]
    row = after(50, row, WaitingReason.RETRY)
    assert [wait.until[-4:] for wait in row.waits] == [":10Z", ":50Z", ""]
    assert row.waiting_since == "2026-01-01T12:00:50Z"


def test_the_latest_are_kept() -> None:
    row = None
    for turn in range(10):
        row = after(turn, row, WaitingReason.RETRY if turn % 2 else WaitingReason.GPU)
    assert row is not None and len(row.waits) == MAX_WAITS
    assert row.waits[-1].since == "2026-01-01T12:00:09Z"
