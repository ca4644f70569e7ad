"""The queue: one key at a time, the earliest wish counts, failures back off."""

import threading

from trenchcoat_operator.loop.queue import WorkQueue
from trenchcoat_operator.model.key import Key

A, B = Key("ml", "a"), Key("ml", "b")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def queue() -> tuple[WorkQueue, Clock]:
    clock = Clock()
    return WorkQueue(clock), clock


def test_a_key_added_often_is_due_once() -> None:
    work, _ = queue()
    for _ in range(3):
        work.add(A)
    work.add(B)
    assert work.depth() == 2
    assert {work.get(), work.get()} == {A, B}
    assert work.depth() == 0


def test_the_earliest_wish_counts() -> None:
    work, clock = queue()
    work.add(A, 60)
    work.add(A, 5)
    work.add(A, 30)
    clock.now = 4.9
    assert work.depth() == 0
    clock.now = 5
    assert work.get() == A
    work.done(A, None)
    clock.now = 100
    assert work.depth() == 0


def test_what_is_added_while_it_is_worked_on_comes_after() -> None:
    work, _ = queue()
    work.add(A)
    assert work.get() == A
    work.add(A)
    assert work.depth() == 0, "a key is with one worker at a time"
    work.done(A, None)
    assert work.get() == A


def test_done_may_ask_for_another_look() -> None:
    work, clock = queue()
    work.add(A)
    assert work.get() == A
    work.add(A, 30)
    work.done(A, 2)
    clock.now = 2
    assert work.get() == A


def test_what_something_happened_to_goes_first_and_routine_has_its_turn() -> None:
    work, clock = queue()
    for key in (A, B):
        work.add(key)
        assert work.get() == key
        work.done(key, 2)
    clock.now = 60  # both are late, A the longest
    work.add(B)
    assert work.get() == B, "its event goes before the look at A"
    work.add(B)
    work.done(B, None)
    taken = []
    for _ in range(3):
        taken.append(work.get())
        work.add(taken[-1])
        work.done(taken[-1], None)
    assert A in taken, "no look waits for ever"


def test_a_look_that_comes_sooner_keeps_the_rank_of_an_event() -> None:
    work, clock = queue()
    work.add(A, 10)
    work.add(B)
    assert work.get() == B
    work.done(B, 1)
    clock.now = 10
    assert work.get() == A, "an event goes before what is due for longer"
    work.done(A, None)
    assert work.get() == B


def test_failures_back_off_and_success_ends_it() -> None:
    work, clock = queue()
    delays = []
    for _ in range(10):
        work.add(A, -1)
        clock.now += 1000
        assert work.get() == A
        work.add(A)  # an event that comes meanwhile does not shorten the back-off
        delays.append(work.failed(A))
        assert work.depth() == 0
    assert delays[:4] == [1, 2, 4, 8]
    assert delays[-1] == 120
    clock.now += 1000
    assert work.get() == A
    work.done(A, None)
    work.add(A)
    assert work.get() == A
    assert work.failed(A) == 1


def test_stop_wakes_who_waits() -> None:
    work = WorkQueue()
    got: list[Key | None] = []
    thread = threading.Thread(target=lambda: got.append(work.get()))
    thread.start()
    work.stop()
    thread.join(120)
    assert got == [None]
