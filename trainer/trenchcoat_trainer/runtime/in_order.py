"""Working ahead of the consumer in a pool, a bounded number of items, with results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    submit: Callable[[Item], Future[Result]], items: Iterable[Item], depth: int
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with the result of submit(item), in order, at most `depth` of them ahead.

    What the work raises is raised here when its turn comes.
    """
    source = iter(items)
    pending: deque[tuple[Item, Future[Result]]] = deque()
    pending.extend((item, submit(item)) for item in islice(source, depth))
    while pending:
        item, future = pending.popleft()
        result = future.result()
        pending.extend((following, submit(following)) for following in islice(source, 1))
        yield item, result
