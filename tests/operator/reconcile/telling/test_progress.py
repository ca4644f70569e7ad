"""How much of a run is done: by what its stages are planned to take."""

import pytest
from trenchcoat_api import texts
from trenchcoat_api.status import State
from trenchcoat_operator.reconcile.decide import reconcile

from tests.operator import world
from tests.operator.reconcile.test_golden import DATA


@pytest.mark.parametrize("case", ["new", "stitch-unschedulable", "complete"])
def test_what_is_complete_counts_the_seconds_that_were_planned(case: str) -> None:
    seen = world.load(DATA / case)
    status = reconcile(seen.trenchcoat, seen.observed, world.SETTINGS, seen.now).status
    assert status is not None
    if status.estimate is None:
        assert status.progress == "0%"
        return
    planned = {row.name: float(row.seconds) for row in status.estimate.stages}
    done = sum(planned[row.name] for row in status.stages if row.state is State.SUCCEEDED)
    assert status.progress == texts.percent(done / sum(planned[row.name] for row in status.stages))
