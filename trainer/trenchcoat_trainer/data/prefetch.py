"""Reading ahead of the consumer, a bounded number of objects."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

DEPTH = 4
"""Objects that are being read, or wait to be used, at one time."""


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], depth: int = DEPTH
) -> Iterator[Result]:
    """Yield function(item) for each item in order, at most `depth` of them ahead, in as many threads.

    What the function raises is raised here when its turn comes.
    """
    source = iter(items)
    pool = ThreadPoolExecutor(depth, thread_name_prefix="prefetch")
    try:
        pending: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(source, depth))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(source, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
