"""Processes that run one variant after another, side by side on one GPU."""

import multiprocessing
import os
import queue
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from variants import Variant, run_variant


class Lane:
    """A process that runs one variant after another, and is replaced when one fails."""

    def __init__(self, index: int, work: Path) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._log = work / f"lane-{index}.log"
        self.running: tuple[str, Variant | None, str] | None = None
        self.started = 0.0
        self._start()

    def _start(self) -> None:
        self._tasks, self._results = self._context.Queue(), self._context.Queue()
        self._process = self._context.Process(
            target=serve, args=(self._tasks, self._results, self._log), daemon=True
        )
        self._process.start()

    def submit(self, name: str, variant: Variant | None, attention: str, *arguments: Any) -> None:
        """Run a variant; the check of the kernels where it is None."""
        self.running, self.started = (name, variant, attention), time.monotonic()
        self._tasks.put((variant, attention, *arguments))

    def poll(self) -> dict[str, Any] | None:
        """Return what came of it, {"error": ...} for a failure, None while it runs."""
        try:
            result = self._results.get(timeout=0.2)
        except queue.Empty:
            if self._process.is_alive():
                return None
            result = {"error": f"the process ended with {self._process.exitcode}"}
        if "error" in result:
            self.stop()
            self._start()
        self.running = None
        return result

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def serve(tasks: Any, results: Any, log: Path) -> None:
    """Run variants in this process until it is ended; output goes to `log`."""
    with log.open("a") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    # The slow part of starting, while the teacher is still being trained.
    import torch
    from trenchcoat_trainer.cli import configure_log
    from trenchcoat_trainer.runtime.devices import any_device
    from trenchcoat_trainer.stages import cria, evaluate, stitch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 4))
    configure_log()
    stitch.import_deepspeed(any_device(0))
    del cria, evaluate
    while True:
        variant, attention, *arguments = tasks.get()
        try:
            if variant is None:
                results.put(check_kernels())
                continue
            if attention == "tiled":
                use_tiled()
            results.put(run_variant(variant, *arguments))
        except Exception as error:  # noqa: BLE001 - it is told, and the process is replaced
            traceback.print_exc()
            sys.stderr.flush()
            results.put({"error": f"{type(error).__name__}: {error}"})
            time.sleep(60)  # until this process is replaced: the GPU's state is not to be trusted


def use_tiled() -> None:
    """Compute attention in plain torch, module by module: for a machine where the kernels do not run."""
    from trenchcoat_trainer.stages import cria
    from trenchcoat_trainer.students.lolcats import form, tiled

    form.choose_backend = lambda backend, q: tiled
    cria.fuse_for_gpu = lambda model, positions: None


def check_kernels() -> dict[str, Any]:
    """Compare the Triton kernels with plain torch on this GPU, at this benchmark's shapes."""
    import torch
    from trenchcoat_trainer.students import Heads, LossWeights
    from trenchcoat_trainer.students.lolcats.form import LolcatsLayer

    if not torch.cuda.is_available():
        return {"attention": "tiled", "reason": "no GPU"}
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 12, 1024, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    maps = {name: torch.randn(12, 64, 64, device="cuda") * 0.05 for name in ("w_q", "w_k")}
    maps["window_factor"] = torch.full((12,), -2.2, device="cuda")
    found = {}
    for backend in ("tiled", "triton"):
        attention = LolcatsLayer(12, 12, 12, 64, 64, window_size=64, backend=backend)
        own = {name: tensor.clone().requires_grad_() for name, tensor in maps.items()}
        result = attention.transfer_loss(Heads(q, k, v), own, LossWeights())
        result.loss.backward()
        heads = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        y = attention.attend(Heads(*heads), maps)
        y.float().square().sum().backward()
        parts = [result.loss, result.output, y, *(t.grad for t in own.values()), *(t.grad for t in heads)]
        found[backend] = [part.detach().float() for part in parts]
    errors = [
        ((a - b).norm() / a.norm()).item() for a, b in zip(found["tiled"], found["triton"], strict=True)
    ]
    good = all(error < 0.03 for error in errors)  # NaN is not
    return {
        "attention": "triton" if good else "tiled",
        "relativeDifferences": [float(f"{error:.2g}") for error in errors],
    }
