"""How long a stage has left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trenchcoat_trainer.runtime.pace import Pace


def told(*notes: tuple[float, float]) -> float | None:
    pace = Pace()
    for seconds, fraction in notes:
        pace.note(seconds, fraction)
    return pace.left()


def test_nothing_is_known_before_something_was_done() -> None:
    assert told() is None
    assert told((5, 0.0)) is None
    assert told((5, 0.3), (9, 0.3)) is None


def test_nothing_is_left_at_the_end() -> None:
    assert told((0, 0.0), (10, 1.0)) == 0.0


@given(
    start=st.floats(0, 1e6),
    each=st.floats(0.01, 1e4),
    steps=st.integers(20, 2000),
    begun=st.floats(0, 0.8),
)
def test_an_even_pace_is_told_exactly(start: float, each: float, steps: int, begun: float) -> None:
    """However many steps there are, and wherever an earlier attempt has left off."""
    pace = Pace()
    for step in range(steps // 2):
        pace.note(start + step * each, begun + (1 - begun) * step / steps)
    left = (steps - (steps // 2 - 1)) * each
    assert pace.left() == pytest.approx(left, rel=1e-3)


@given(slow=st.floats(1, 30), each=st.floats(0.01, 10), share=st.floats(0.02, 0.05))
def test_a_slow_start_does_not_count_after_a_tenth(slow: float, each: float, share: float) -> None:
    """What the first part of the stage took so many times longer is forgotten once as much time went by."""
    pace, now, steps = Pace(), 0.0, 4000
    step = 0
    begun = share * steps * each * slow
    while now < 2.2 * begun and step < steps:
        pace.note(now, step / steps)
        now += each * (slow if step < share * steps else 1)
        step += 1
    if step < steps:
        assert pace.left() == pytest.approx((steps - step) * each, rel=0.2)


@given(st.lists(st.tuples(st.floats(0.001, 100), st.floats(0, 1)), min_size=1, max_size=300))
def test_an_estimate_is_never_negative(notes: list[tuple[float, float]]) -> None:
    pace, now = Pace(), 0.0
    for seconds, fraction in notes:
        now += seconds
        pace.note(now, fraction)
        left = pace.left()
        assert left is None or left >= 0


def test_work_that_is_begun_anew_is_judged_anew() -> None:
    assert told((0, 0.0), (1, 0.5), (2, 0.9), (10, 0.0), (20, 0.1)) == pytest.approx(90)


def test_what_is_kept_does_not_grow() -> None:
    pace = Pace()
    for step in range(100_000):
        pace.note(step, step / 100_000)
    assert len(pace._told) <= 64
