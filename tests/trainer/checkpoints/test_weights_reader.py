"""Objects are read one after another, before they are asked for or then, and given up at once."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from trenchcoat_trainer.checkpoints import weights_reader
from trenchcoat_trainer.checkpoints.weights_reader import WeightsReader
from trenchcoat_trainer.errors import PreemptedError, StoreError

from tests.waiting import until

TIMEOUT = 30.0


class Store:
    """Objects that are read as it is let, in as many pieces as that takes."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.lets: set[str] = set()

    def read(self, _: object, path: str, between: Callable[[], None]) -> dict[str, torch.Tensor]:
        self.begun.append(path)
        while path not in self.lets:
            between()
            time.sleep(0.001)
        if path == "broken":
            raise StoreError("the store is gone")
        return {path: torch.ones(1)}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    found = Store()
    monkeypatch.setattr(weights_reader, "read_weights", found.read)
    return found


@pytest.fixture
def reader(store: Store) -> Iterator[WeightsReader]:
    found = WeightsReader(None)  # type: ignore[arg-type]
    yield found
    found.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("weights")]


def never() -> None:
    """Called meanwhile."""


def test_what_was_begun_is_read_in_order_one_at_a_time(store: Store, reader: WeightsReader) -> None:
    for path in ("a", "b", "a"):
        reader.begin(path)
    until(lambda: store.begun, TIMEOUT, "a is begun")
    time.sleep(0.05)
    assert store.begun == ["a"]
    store.lets = {"a", "b", "c"}
    until(lambda: store.begun == ["a", "b"], TIMEOUT, "b is begun")
    assert [list(reader.take(path, never)) for path in ("b", "a", "c")] == [["b"], ["a"], ["c"]]
    assert store.begun == ["a", "b", "c"]
    reader.take("a", never)  # it is kept by nobody
    assert store.begun == ["a", "b", "c", "a"]


def test_what_reading_raises_comes_when_it_is_asked_for(store: Store, reader: WeightsReader) -> None:
    store.lets = {"broken", "a"}
    reader.begin("broken")
    assert reader.take("a", never)
    with pytest.raises(StoreError, match="the store is gone"):
        reader.take("broken", never)


def test_a_wait_is_ended_by_what_is_called_meanwhile(store: Store, reader: WeightsReader) -> None:
    def stop() -> None:
        raise PreemptedError("stopped")

    with pytest.raises(PreemptedError):
        reader.take("a", stop)


def test_what_nobody_wants_is_given_up_at_once(store: Store, reader: WeightsReader) -> None:
    for path in ("a", "b", "c"):
        reader.begin(path)
    until(lambda: store.begun, TIMEOUT, "a is begun")
    store.lets = {"c"}
    reader.keep(["c"])
    assert list(reader.take("c", never)) == ["c"]
    assert store.begun == ["a", "c"]
