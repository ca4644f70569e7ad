"""Reading ahead."""

import threading
import time

import pytest
from trenchcoat_trainer.data.prefetch import prefetch


def test_results_come_in_order() -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * number

    assert list(prefetch(slow_at_first, range(20))) == [number * number for number in range(20)]


def test_no_more_than_the_depth_are_held() -> None:
    started = []
    for result in prefetch(lambda number: started.append(number) or number, range(100), depth=3):
        time.sleep(0.001)
        assert len(started) <= result + 1 + 3
    assert len(started) == 100


def test_an_error_comes_when_its_turn_comes() -> None:
    def fail_at_five(number: int) -> int:
        if number == 5:
            raise OSError("five is gone")
        return number

    seen = []
    with pytest.raises(OSError, match="five is gone"):
        for number in prefetch(fail_at_five, range(10)):
            seen.append(number)
    assert seen == [0, 1, 2, 3, 4]


def test_no_thread_outlives_a_consumer_that_leaves() -> None:
    before = set(threading.enumerate())  # what other tests have left is theirs
    results = prefetch(lambda number: number, range(100))
    next(results)
    own = [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    own = [thread for thread in own if thread not in before]
    assert own
    results.close()
    assert not any(thread.is_alive() for thread in own)
