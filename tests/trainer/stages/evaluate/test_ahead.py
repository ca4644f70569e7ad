"""While one Cria computes, the next one's weights are read; however that ends, nothing stays behind."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints import pod_weights, weights_reader
from trenchcoat_trainer.checkpoints.shards import layer_path, read_weights
from trenchcoat_trainer.errors import CorruptObjectError, PreemptedError
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.stages import evaluate
from trenchcoat_trainer.stages.evaluate.course import Course
from trenchcoat_trainer.store import FolderStore

from tests.trainer.stages.conftest import change
from tests.waiting import until

PASSES = 2
TIMEOUT = 60.0
Events = list[str | int]


@pytest.fixture
def spec(training_spec: TrenchcoatSpec) -> TrenchcoatSpec:
    return change(training_spec, evaluate={"lengthMultiples": [2], "recallSamples": 0})


@pytest.fixture
def context(open_training: Callable[..., StageContext], spec: TrenchcoatSpec) -> StageContext:
    return open_training(spec, Stage.EVALUATE, trained="stitched_store")


@pytest.fixture(autouse=True)
def _leaves_no_thread() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("weights")]


def objects(context: StageContext) -> list[list[str]]:
    """The layers of each Cria."""
    return [[layer_path(cria, layer) for layer in cria.layers] for cria in context.crias]


def note(monkeypatch: pytest.MonkeyPatch, began: Callable[[Events], None] = lambda _: None) -> Events:
    """What is read of the layers and computed, as it comes; `began` is called after a Cria's first batch.

    A path stands for an object whose reading begins, a number for a Cria in which the first batch has passed.
    """
    events: Events = []
    crossed: list[int] = []
    ran = Course.ran

    def reading(inputs: Any, path: str, between: Any) -> Any:
        events.append(path)
        return read_weights(inputs, path, between)

    def computed(course: Course, form: str, item: Any, number: int, cria: Any) -> None:
        ran(course, form, item, number, cria)
        if crossed[-1:] != [cria.index]:
            crossed.append(cria.index)
            events.append(cria.index)
            began(events)

    monkeypatch.setattr(weights_reader, "read_weights", reading)
    monkeypatch.setattr(Course, "ran", computed)
    return events


def test_the_next_cria_is_read_while_one_computes(context, monkeypatch):
    order = [path for paths in objects(context) * PASSES for path in paths]

    def wait_for_the_next(events: Events) -> None:
        """Also for that which begins the next pass."""
        due = sum(len(context.crias[event].layers) for event in events if isinstance(event, int))
        until(lambda: due == len(order) or paths_of(events)[due:], TIMEOUT, "the next Cria is read")

    def paths_of(events: Events) -> list[str]:
        return [event for event in events if isinstance(event, str)]

    events = note(monkeypatch, wait_for_the_next)
    evaluate.run(context)
    assert [event for event in events if isinstance(event, int)] == [0, 1, 2] * PASSES
    assert paths_of(events) == order  # each once in a pass


def test_without_memory_for_it_each_cria_is_read_when_it_is_due(
    context, open_training, spec, monkeypatch, caplog
):
    evaluate.run(context)
    monkeypatch.setattr(pod_weights, "available_memory", lambda: pod_weights.SPARE_BYTES)
    events = note(monkeypatch)
    again = open_training(spec, Stage.EVALUATE, store="again", trained="stitched_store")
    with caplog.at_level(logging.INFO):
        evaluate.run(again)
    in_turn = [[*paths, number] for number, paths in enumerate(objects(again))] * PASSES
    assert events == [event for cria in in_turn for event in cria]
    told = [record.getMessage() for record in caplog.records if "only when it is due" in record.message]
    assert len(told) == 1 and "2.0 GB are left" in told[0]
    assert again.manifest(again.artifact).facts == context.manifest(context.artifact).facts


def test_what_is_damaged_and_read_ahead_fails_the_stage_when_it_is_due(context, monkeypatch):
    damaged = objects(context)[-1][0]
    path = context.artifacts.shard.prefix + damaged
    context.store.write(path, context.store.read(path)[:-1] + b"?")
    events = note(monkeypatch)
    with pytest.raises(CorruptObjectError, match=f"{damaged} does not have its checksum"):
        evaluate.run(context)
    assert 1 in events and 2 not in events
    assert not context.store.exists(context.artifact.manifest_path)


@pytest.mark.parametrize("cria", [0, 1])
def test_a_stop_does_not_wait_for_what_the_store_is_slow_with(context, monkeypatch, cria):
    """Cria 0 is read as it is due, Cria 1 while it computes."""
    slow = context.artifacts.shard.prefix + objects(context)[cria][0]
    stream = FolderStore.stream

    def dripping(store: FolderStore, path: str, *arguments: Any) -> Iterator[bytes]:
        for chunk in stream(store, path, *arguments):
            if path != slow:
                yield chunk
                continue
            for place in range(len(chunk)):
                yield chunk[place : place + 1]
                time.sleep(0.01)
                context.stop.requested = place > 100

    monkeypatch.setattr(FolderStore, "stream", dripping)
    began = time.monotonic()
    with pytest.raises(PreemptedError):
        evaluate.run(context)
    size = context.stored_object(context.artifacts.shard, objects(context)[cria][0]).size
    assert time.monotonic() - began < 0.01 * size / 5
