"""Reading ahead of the consumer, a bounded number of objects."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from trenchcoat_trainer.runtime.in_order import in_order

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
    pool = ThreadPoolExecutor(depth, thread_name_prefix="prefetch")
    try:
        for _, result in in_order(partial(pool.submit, function), items, depth):
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
