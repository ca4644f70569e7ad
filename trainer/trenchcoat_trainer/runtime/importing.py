"""Importing what stays until the process ends."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Within this context nothing is searched for garbage, nor is, later, what was imported in it.

    Importing torch and transformers makes a million objects that stay. Searching them again and again, as
    they become more, takes a quarter of the time that importing takes.
    """
    was_enabled, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:  # else all of it was there
            gc.freeze()
        if was_enabled:
            gc.enable()
