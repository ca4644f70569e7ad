"""Ranks of a pod meet, and then all go on, or none does."""

from types import SimpleNamespace

import pytest
import torch.distributed as dist
from trenchcoat_trainer.errors import PreemptedError
from trenchcoat_trainer.runtime import sharing
from trenchcoat_trainer.runtime.sharing import Sharing
from trenchcoat_trainer.runtime.stop import StopRequest


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> list[Sharing]:
    """Four, in pods of two, which have joined."""
    store = dist.HashStore()
    monkeypatch.setattr(sharing, "key_value_store", lambda: store)
    monkeypatch.setattr(sharing.dist, "new_subgroups", lambda size, timeout: (f"group of {size}", []))
    return [
        Sharing(SimpleNamespace(rank=rank, world_size=4, local_world_size=2, stop=StopRequest()))
        for rank in range(4)
    ]


def ask_to_stop(rank: Sharing) -> None:
    rank._stop.requested = True


def test_each_knows_the_ranks_of_its_pod(ranks):
    assert [list(rank.pod) for rank in ranks] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    alone = Sharing(SimpleNamespace(rank=0, world_size=1, local_world_size=1, stop=StopRequest()))
    assert list(alone.pod) == [0] and alone.pod_group is None


def test_those_that_have_come_are_told_what_each_has_said(ranks):
    ranks[3]._arrive("there", "three")
    ranks[1]._arrive("there", "one")
    assert ranks[0].meet("there", "zero") == ["zero", "one"]
    assert ranks[2].meet("there", "two") == ["two", "three"]
    assert ranks[1].meet("there", "one") == ["zero", "one"]


def test_one_that_is_asked_to_stop_once_all_have_come_goes_on_with_them(ranks):
    ranks[1]._arrive("there", "one")
    assert ranks[0].meet("there", "zero") == ["zero", "one"]
    ask_to_stop(ranks[1])
    assert ranks[1].meet("there", "one") == ["zero", "one"]


def test_none_goes_on_where_one_was_asked_to_stop_before_all_had_come(ranks):
    ask_to_stop(ranks[0])
    with pytest.raises(PreemptedError, match="stopped on request"):
        ranks[0].meet("there", "zero")
    with pytest.raises(PreemptedError, match="another rank was asked to stop"):
        ranks[1].meet("there", "one")
    ranks[3]._arrive("there", "three")
    assert ranks[2].meet("there", "two") == ["two", "three"]
