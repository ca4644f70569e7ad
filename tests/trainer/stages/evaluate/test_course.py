"""How long an evaluation still takes, by a clock that goes by what each form of the model takes."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.crias import cria_ranges
from trenchcoat_trainer.stages.evaluate import course as module
from trenchcoat_trainer.stages.evaluate.course import HEAD, Costs, Course, costs
from trenchcoat_trainer.stages.evaluate.crossing import Ledger
from trenchcoat_trainer.stages.evaluate.sets import EvaluationSet, text_set
from trenchcoat_trainer.stages.evaluate.variants import TEACHER, TRANSFER, WINDOWED, Variant

CRIAS = cria_ranges(6, 2)
MODEL = ModelFacts(
    layers=6,
    hidden_size=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate_size=192,
    vocab_size=300,
    parameters=400_000,
)
BATCH = 64
SHORT = text_set(torch.ones(5, 32, dtype=torch.int32), 1, ["teacher", "transfer"])
LONG = text_set(torch.ones(8, 32, dtype=torch.int32), 4, ["teacher"])
PRICES = {"teacher": 1.0, "transfer": 5.0, HEAD: 0.5}
"""Seconds that a unit of the costs takes."""


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def cost(_, cria, sequences: int, length: int) -> float:
    return float(len(cria.layers) * sequences * length**2)


def planned() -> Course:
    """All of both sets, whose batches are 2, 2 and 1 short sequences, and 1 long one twice."""
    course = Course(Costs(cost, 1.0), [TEACHER, TRANSFER], CRIAS, BATCH)
    for form, item, numbers in places():
        course.expect(form, item, numbers)
    return course


def places() -> Iterator[tuple[str, EvaluationSet, range]]:
    for item in (SHORT, LONG):
        for form in item.forms:
            yield form, item, range(item.batch_count(BATCH))


def steps(course: Course) -> Iterator[tuple[float, str, EvaluationSet, int, int]]:
    """What is done in turn: its seconds, the form, the set, the batch and the Cria; -1 where it is scored."""
    for item in (SHORT, LONG):
        own = [place for place in places() if place[1] is item]
        for cria in CRIAS:
            for form, _, numbers in own:
                for number in numbers:
                    seconds = PRICES[form] * course._batch(form, item, number, cria)
                    yield seconds, form, item, number, cria.index
        for form, _, numbers in own:
            yield PRICES[HEAD] * course._head(item, numbers), form, item, -1, -1


def test_each_form_goes_by_its_own_pace_on_sequences_of_any_length(clock: Clock) -> None:
    course = planned()
    todo = list(steps(course))
    whole = sum(seconds for seconds, *_ in todo)
    assert course.share == 0 and course.left() is None
    for done, (seconds, form, item, number, cria) in enumerate(todo, 1):
        clock.now += seconds
        if cria < 0:
            course.scored(item, range(item.batch_count(BATCH)))
        else:
            course.ran(form, item, number, CRIAS[cria])
        if done >= 6:  # both forms were seen
            # What scoring takes is known only once it was done; it is little.
            assert course.left() == pytest.approx(100 + whole - clock.now, rel=0.02, abs=0.01 * whole), done
    assert course.share == 1 and course.left() == pytest.approx(0, abs=1e-6)
    assert course.spent == pytest.approx(whole - todo[0][0])


def test_what_an_earlier_attempt_did_is_done_and_tells_no_pace(clock: Clock) -> None:
    course = planned()
    for form in SHORT.forms:
        course.skip(form, SHORT, range(3))
    course.resume("teacher", LONG, {0: 2, 1: 2})
    assert 0.5 < course.share < 1 and course.left() is None
    clock.now += 1000  # a start
    course.ran("teacher", LONG, 0, CRIAS[2])
    assert course.left() is None and course.spent == 0
    clock.now += course._batch("teacher", LONG, 1, CRIAS[2])
    course.ran("teacher", LONG, 1, CRIAS[2])
    assert course.left() == pytest.approx(course._head(LONG, range(2)))  # at the pace of what was done
    course.scored(LONG, range(2))
    assert course.share == 1


def test_a_rank_without_batches_has_nothing_left(clock: Clock) -> None:
    course = Course(Costs(cost, 1.0), [TEACHER], CRIAS, BATCH)
    course.expect("teacher", LONG, range(0))
    course.skip("teacher", LONG, range(0))
    course.scored(LONG, range(0))
    assert course.share == 1 and course.left() is None


def test_tasks_are_taken_to_take_as_long_as_what_comes_before_them(clock: Clock) -> None:
    spec = SimpleNamespace(evaluate=SimpleNamespace(tasks=object()))
    context = SimpleNamespace(progress=None, spec=spec, rank=0, world_size=1)
    ledger = Ledger(context, None, [SHORT, LONG], course := planned())  # type: ignore[arg-type]
    assert ledger.total == 3 * (2 * 3 + 2) and ledger.left() is None
    course.ran("teacher", SHORT, 0, CRIAS[0])
    clock.now += 8
    course.ran("teacher", SHORT, 1, CRIAS[0])
    left = course.left()
    assert left is not None and ledger.left() == pytest.approx(2 * left + 8)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_what_batches_cost_by_the_model(make_spec, on_gpu: bool) -> None:
    context = SimpleNamespace(spec=make_spec(layersPerCria=2))
    found = costs(context, MODEL, (), on_gpu=on_gpu)  # type: ignore[arg-type]

    def of(variant: Variant, sequences: int, length: int) -> float:
        return found.batch(variant, CRIAS[0], sequences, length)

    assert found.token > 0 and of(TRANSFER, 2, 4096) > of(TRANSFER, 1, 4096)
    if on_gpu:
        assert of(TEACHER, 1, 64) > of(TEACHER, 4, 4096) / 256 * 10  # small ones wait for the host
        return
    # As many tokens in a longer sequence: more scores where attention is softmax, most under a mask.
    assert of(TRANSFER, 4, 64) == of(TRANSFER, 1, 256)
    more, masked = (of(variant, 1, 256) - of(variant, 4, 64) for variant in (TEACHER, WINDOWED))
    assert 0 < more == masked / 2
    kept = costs(context, MODEL, [CRIAS[0].first], on_gpu=False)  # type: ignore[arg-type]
    assert kept.batch(TRANSFER, CRIAS[0], 1, 256) - of(TRANSFER, 1, 256) == more * 4 / 3 / 2
