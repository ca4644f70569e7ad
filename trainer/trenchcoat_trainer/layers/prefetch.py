"""Copy the next micro-batch to the GPU while the current one computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch


def on_device(batches: Iterable[torch.Tensor], device: torch.device | str) -> Iterator[torch.Tensor]:
    """Yield `batches` on `device`, the next one being copied while the caller works on the current one.

    Copies overlap only from pinned memory.  A batch's host memory may be written again once the batch after
    it has been yielded: by then its copy is known to be complete.
    """
    device = torch.device(device)
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    stream = torch.cuda.Stream(device)
    ready: tuple[torch.Tensor, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copy = batch.to(device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(stream)
        if ready is not None:
            yield _claim(*ready)
        ready = (copy, copied)
    if ready is not None:
        yield _claim(*ready)


def _claim(copy: torch.Tensor, copied: torch.cuda.Event) -> torch.Tensor:
    """Make the current stream wait for the copy, and the host for a copy begun one batch ago."""
    current = torch.cuda.current_stream(copy.device)
    current.wait_event(copied)
    copy.record_stream(current)
    copied.synchronize()
    return copy
