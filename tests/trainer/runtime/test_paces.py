"""How fast phases went: what is timed, what is not, and over several attempts."""

import pytest
from trenchcoat_trainer.runtime.clock import Clock
from trenchcoat_trainer.runtime.paces import PaceKeeper
from trenchcoat_trainer.store import FolderStore


def test_the_first_step_of_a_phase_is_no_part_of_its_pace() -> None:
    keeper = PaceKeeper()
    for step, now in enumerate([100.0, 101.0, 102.0, 103.0], 1):  # 0.1 a second, after a start of who knows
        keeper.note("transfer", step / 10, now)
    for step, now in enumerate([150.0, 152.0, 154.0], 1):
        keeper.note("lora", 0.4 + step / 5, now)
    told = keeper.told(ranks=2)
    assert (told.device, told.ranks) == ("cpu", 2)
    transfer, lora = told.phases
    assert (transfer.phase, transfer.share, transfer.timed, transfer.seconds) == ("transfer", 0.4, 0.3, 3.0)
    assert transfer.whole == pytest.approx(4.0)
    assert (lora.phase, lora.share, lora.timed, lora.seconds) == ("lora", 0.6, 0.4, 4.0)
    assert lora.whole == pytest.approx(6.0)


def test_a_phase_of_one_report_tells_nothing() -> None:
    keeper = PaceKeeper()
    keeper.note("shard", 1.0, 5.0)
    assert keeper.told(ranks=1).phases == []


def test_another_attempt_goes_on_and_its_start_is_not_timed(tmp_path) -> None:
    store, artifact = FolderStore(tmp_path), _Artifact()
    first = Clock(store, artifact)
    for step in range(1, 6):
        first.paces.note("stitch", step / 10, 10.0 + step)
    first.save()
    second = Clock(store, artifact)
    for step in range(4, 11):  # what was not saved is done again
        second.paces.note("stitch", step / 10, 1000.0 + step)
    (phase,) = second.paces.told(ranks=1).phases
    assert phase.share == 1.0
    assert phase.seconds / phase.timed == pytest.approx(10.0)
    assert phase.whole == pytest.approx(10.0)


def test_what_is_done_again_and_again_does_not_slow_the_pace() -> None:
    keeper = PaceKeeper()
    for attempt in range(5):  # each killed before it saved
        keeper.restore(keeper.state())
        for step in range(1, 10):
            keeper.note("stitch", step / 10, 1000.0 * attempt + step)
    (phase,) = keeper.told(ranks=1).phases
    assert phase.timed == pytest.approx(4.0)
    assert phase.whole == pytest.approx(9.0)


class _Artifact:
    checkpoint_prefix = "artifacts/stitch/0/checkpoint/"
