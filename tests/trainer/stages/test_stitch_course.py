"""How far the stitch is, by what its steps are planned to take."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trenchcoat_api.planning.command import read_config
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.rates import Kind, Rates, by_products
from trenchcoat_api.planning.timing import Fleet, long_step_cost
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_trainer.stages.stitch.course import Course

EXAMPLES = Path(__file__).parents[3] / "examples"


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0.5, 20))
def test_it_goes_from_nothing_to_all_and_each_step_by_its_cost(
    steps: int, share: float, long_cost: float
) -> None:
    course = Course(steps, round(share * steps), long_cost)
    told = [course.share(done) for done in range(0, steps + 1, max(1, steps // 50))]
    assert told[0] == 0 and course.share(steps) == pytest.approx(1)
    assert told == sorted(told)
    if course.long_steps and course.long_steps < steps:
        last, first = 1 - course.share(steps - 1), course.share(1)
        assert last / first == pytest.approx(long_cost, rel=1e-6)


def test_a_long_sequence_that_one_of_several_ranks_takes_alone_is_planned_to_take_longer() -> None:
    assert planned("llama-3.1-8b", multiple=1) == 1
    assert planned("llama-3.1-8b", multiple=8) == pytest.approx(1, rel=0.2), "one GPU does as much in either"
    assert 4 < planned("llama-3.1-70b", multiple=8) < 8, "of 8 GPUs 7 have none"


def test_on_a_cpu_it_is_what_the_busiest_rank_multiplies() -> None:
    """Of 8 ranks each takes a sequence; of eight times the length one takes one, and 7 have none."""
    assert planned("llama-3.1-70b", multiple=8, as_taken=by_products) == pytest.approx(8)
    assert planned("llama-3.1-8b", multiple=8, as_taken=by_products) == pytest.approx(1)


def planned(example: str, multiple: int, as_taken: Callable[[Kind], Kind] = lambda kind: kind) -> float:
    spec = Trenchcoat.from_yaml(EXAMPLES / f"{example}.yaml").spec
    outline = Outline.of(spec, read_config(EXAMPLES / "models" / f"{example}.json"))
    rates = Rates.load()
    return long_step_cost(outline, Fleet(as_taken(rates.kind(None)[1]), rates, crias=1), multiple)
