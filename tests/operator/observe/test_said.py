"""What is read of Events, and how often they are asked for."""

from datetime import UTC, datetime, timedelta
from typing import Any

from trenchcoat_operator.kubernetes.errors import ApiError, ForbiddenError
from trenchcoat_operator.model import sayings
from trenchcoat_operator.observe.said import Said

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
QUOTA = 'Error creating: pods "j-x7k2p" is forbidden: exceeded quota: gpus'


def event(reason: str, message: str, *, at: str = "12:00:00", uid: str = "u", **more: Any) -> dict[str, Any]:
    return {
        "metadata": {},
        "involvedObject": {"uid": uid},
        "reason": reason,
        "message": message,
        "lastTimestamp": f"2026-01-01T{at}Z",
        **more,
    }


def test_the_last_word_of_an_autoscaler_counts() -> None:
    said = [
        event("NotTriggerScaleUp", "pod didn't trigger scale-up", at="12:00:05"),
        event("TriggeredScaleUp", "pod triggered scale-up: [{pool 0->1 (max: 8)}]", at="12:00:01"),
        event("FailedScheduling", "0/1 nodes are available", at="12:00:09"),
        event("Scheduled", "Successfully assigned", at="12:00:10"),
    ]
    assert sayings.by_autoscalers(said) == "NotTriggerScaleUp: pod didn't trigger scale-up"
    assert sayings.by_autoscalers(said[2:]) == ""
    karpenter = event(
        "FailedScheduling", "no instance type", at="12:00:07", source={"component": "karpenter"}
    )
    assert sayings.by_autoscalers([*said, karpenter]) == "FailedScheduling: no instance type"


def test_a_series_is_as_new_as_its_last_event() -> None:
    series = {"series": {"lastObservedTime": "2026-01-01T12:30:00.000000Z", "count": 4}}
    said = [
        event("NotTriggerScaleUp", "told anew", **series),
        event("TriggeredScaleUp", "told once", at="12:10:00"),
    ]
    assert sayings.by_autoscalers(said) == "NotTriggerScaleUp: told anew"


def test_a_refusal_is_of_this_very_job_and_fresh() -> None:
    assert sayings.refusal([event("FailedCreate", QUOTA)], "u", NOON) == "forbidden: exceeded quota: gpus"
    assert sayings.refusal([event("FailedCreatePod", QUOTA)], "u", NOON)
    assert not sayings.refusal([event("FailedCreate", QUOTA)], "another", NOON)
    assert not sayings.refusal([event("FailedCreate", QUOTA)], "u", NOON + timedelta(seconds=1))
    assert not sayings.refusal([event("SuccessfulCreate", "Created pod: j-x7k2p")], "u", NOON)


class Api:
    def __init__(self, fault: ApiError | None = None) -> None:
        self.asked: list[str] = []
        self.fault = fault

    def list(self, chosen: Any, **_: Any) -> list[dict[str, Any]]:
        self.asked.append(chosen.fields)
        if self.fault is not None:
            raise self.fault
        return [event("TriggeredScaleUp", "one more")]


def test_events_are_asked_for_now_and_then_and_of_a_few_at_a_time() -> None:
    api, now = Api(), [0.0]
    said = Said(api, clock=lambda: now[0])  # type: ignore[arg-type]
    assert said.by_autoscalers("ml", "p") == said.by_autoscalers("ml", "p") == "TriggeredScaleUp: one more"
    assert api.asked == ["involvedObject.kind=Pod,involvedObject.name=p"]
    told = [bool(said.by_autoscalers("ml", f"p{number}")) for number in range(100)]
    assert told == [True] * 15 + [False] * 85 and len(api.asked) == 16
    assert said.by_autoscalers("elsewhere", "p"), "another namespace has its own"
    now[0] = 11.0
    assert said.by_autoscalers("ml", "p99")


def test_what_may_not_be_read_is_asked_for_no_more_often() -> None:
    api = Api(ForbiddenError(403, "Forbidden", "events is forbidden"))
    said = Said(api, clock=lambda: 0.0)  # type: ignore[arg-type]
    assert [said.by_autoscalers("ml", "p") for _ in range(5)] == [""] * 5
    assert len(api.asked) == 1
