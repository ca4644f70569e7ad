"""Computations that repeat, as CUDA graphs: one launch for all kernels of a step.

A small model's kernels end before the host has launched the next ones; a graph launches them together, and
the numbers stay what they are.
"""

import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)


class Replayed:
    """A function of no arguments: called twice as it is, then captured and replayed as a CUDA graph.

    What it allocates and sets up at first, an optimiser's state and libraries' workspaces, is there by then.
    It must read and write tensors that stay where they are, and may not wait for the device.  One that cannot
    be captured, or has too little memory left for one of its own, goes on as it is, with one warning.
    """

    CALLS = 2

    def __init__(
        self, compute: Callable[[], None], graphs: bool, *, name: str, pool: tuple[int, int] | None = None
    ) -> None:
        """Wrap `compute`.

        Args:
            compute: computes; a second call before anything has run must do what the first would have.
            graphs: whether to capture a graph; needs a CUDA GPU.
            name: what is computed, for the warning.
            pool: of `torch.cuda.graph_pool_handle`, where graphs may use the same memory: they never run at
                once, and none reads what another leaves there.
        """
        self._compute = compute
        self._calls = self.CALLS if graphs else None
        self._name = name
        self._pool = pool
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Compute."""
        if self._graph is not None:
            self._graph.replay()
        elif self._calls is None:
            self._compute()
        elif self._calls:
            self._calls -= 1
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._compute()
            torch.cuda.current_stream().wait_stream(side)
        else:
            self._capture()
            self()

    @property
    def captured(self) -> bool:
        """Whether calls replay a graph."""
        return self._graph is not None

    def _capture(self) -> None:
        torch.cuda.empty_cache()  # a graph's memory is its own: what eager passes left is no use to it
        graph = torch.cuda.CUDAGraph()
        try:
            # What other threads do meanwhile, who write objects and wait for their copies, is none of it.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._compute()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            logger.warning(
                "%s cannot run as a CUDA graph (%s): launching kernels one by one", self._name, reason
            )
            self._calls = None
            return
        self._graph = graph
