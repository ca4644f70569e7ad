"""How long GPUs wait for the next Cria."""

from demo.turnover import turnover_seconds


def pod(bound: str, ended: str) -> dict:
    return {
        "status": {
            "conditions": [
                {"type": "Ready", "lastTransitionTime": f"2026-01-01T00:{ended}Z"},
                {"type": "PodScheduled", "lastTransitionTime": f"2026-01-01T00:{bound}Z"},
            ],
            "containerStatuses": [{"state": {"terminated": {"finishedAt": f"2026-01-01T00:{ended}Z"}}}],
        }
    }


def test_each_follows_the_one_whose_place_it_takes() -> None:
    # Two GPUs: the third takes the second's place, the fourth the first's.
    pods = [pod("00:00", "00:30"), pod("00:00", "00:20"), pod("00:21", "00:50"), pod("00:33", "01:00")]
    assert turnover_seconds(pods, 2) == [1.0, 3.0]


def test_the_first_wait_for_nobody() -> None:
    assert turnover_seconds([pod("00:00", "00:30")], 1) == []
