"""The reference's faults, switched on one at a time by substituting functions of the product.

None of them is an option of the product. Each is a context manager that restores what it replaced.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.stages import cria as cria_stage
from trenchcoat_trainer.stages.cria.optimizer import NamedAdamW
from trenchcoat_trainer.stages.cria.transfer import TransferPhase, transfer_step


def switched_on(fault: str | None) -> Any:
    """Return a context in which attention transfer has `fault`; no fault for None."""
    if fault is None:
        return nullcontext()
    return {"normedResidual": normed_residual, "oneSchedule": one_schedule, "bf16Maps": bf16_maps}[fault]()


@contextmanager
def normed_residual() -> Iterator[None]:
    """Give every Cria but the first its inputs normed, and let that be the residual stream too.

    Attention of the first layer sees what it should; everything after it does not.
    """
    load = cria_stage.load_cria

    def load_cria(*arguments: Any, **named: Any) -> CriaModel:
        model = load(*arguments, **named)
        if model.cria.index > 0:
            first = next(iter(model.layers.values()))
            model.entry_norm, first.input_layernorm = first.input_layernorm, nn.Identity()
        return model

    def step(cria: CriaModel, hidden_BTE: torch.Tensor, **named: Any) -> torch.Tensor:
        if cria.cria.index > 0:
            with torch.no_grad():
                hidden_BTE = cria.entry_norm(hidden_BTE)
        return transfer_step(cria, hidden_BTE, **named)

    with (
        patch.object(cria_stage, "load_cria", load_cria),
        patch.object(cria_stage, "transfer_step", step),
        patch.object(cria_stage, "fuse_for_gpu", lambda model, positions: None, create=True),
    ):
        yield


@contextmanager
def one_schedule() -> Iterator[None]:
    """Judge all layers of a Cria by their mean loss: one rate, one best checkpoint."""

    def check(phase: TransferPhase) -> None:
        mean = sum(phase._sums) / len(phase._sums) / phase._count
        is_best = phase._schedules[0].check(mean)
        for index, layer in enumerate(phase._layers):
            phase._schedules[index] = phase._schedules[0]
            if is_best:
                for name, parameter in phase._groups[str(layer)].items():
                    phase._best[name].copy_(parameter.detach())
            phase._adamw.set_rate(str(layer), phase._schedules[0].rate)
        phase._sums, phase._count = [0.0] * len(phase._layers), 0

    with patch.object(TransferPhase, "_check", check):
        yield


@contextmanager
def bf16_maps() -> Iterator[None]:
    """Round parameters and AdamW's moments to bf16 after every step, as if that were how they are kept."""
    step = NamedAdamW.step

    def rounded_step(optimizer: NamedAdamW, clip: float) -> torch.Tensor:
        norms = step(optimizer, clip)
        with torch.no_grad():
            for _, parameter in optimizer._parameters():
                state = optimizer._adamw.state[parameter]
                for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"]):
                    tensor.copy_(tensor.bfloat16())
        return norms

    with patch.object(NamedAdamW, "step", rounded_step):
        yield
