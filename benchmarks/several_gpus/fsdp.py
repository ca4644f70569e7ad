"""Plain FSDP2 of torch over the same model, as an engine: what DeepSpeed ZeRO-3 is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint
from trenchcoat_trainer.models.adapters import inject_adapters
from trenchcoat_trainer.models.artifacts import weight_dtype
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.training import Cursor
from trenchcoat_trainer.stages.stitch.alone import build_model
from trenchcoat_trainer.stages.stitch.batches import StepBatch
from trenchcoat_trainer.stages.stitch.engine import next_token_loss, seed_dropout
from trenchcoat_trainer.stages.stitch.memory import Held
from trenchcoat_trainer.stages.stitch.subject import Subject


@contextmanager
def open_engine(context: StageContext, subject: Subject, held: Held, device: torch.device) -> Iterator[Fsdp]:
    """Build the subject on each rank, then cut it over all; the other ranks have been joined before.

    The layers are groups of their own, as are the embedding and the head; a group's weights go as soon as it
    has computed, unless `held` keeps them. Layers run twice unless it keeps their graphs.
    """
    model = build_model(context, subject, device)
    adapters = inject_adapters(model, context.spec.stitch.lora, seed=context.spec.seed, purpose="stitch")
    policy = MixedPrecisionPolicy(param_dtype=weight_dtype(context), reduce_dtype=torch.float32)
    cut = partial(fully_shard, mp_policy=policy, reshard_after_forward=not held.weights)
    for layer in model.model.layers:
        if not held.graph:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        cut(layer)
    if not subject.config.tie_word_embeddings:
        cut(model.model.embed_tokens)
        cut([model.model.norm, model.lm_head])
    cut(model)
    # Cut parameters are others than those that were injected.
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if len(own) != len(adapters):
        raise RuntimeError(f"{len(own)} parameters are to be trained, but there are {len(adapters)} adapters")
    yield Fsdp(context, model.train(), list(own.values()), held, device)


class Fsdp:
    """As much of `Engine` as a step takes."""

    def __init__(
        self,
        context: StageContext,
        model: nn.Module,
        adapters: list[nn.Parameter],
        held: Held,
        device: torch.device,
    ) -> None:
        self._context = context
        self._model = model
        self._adapters = adapters
        self._held = held
        self._device = device
        self._optimizer = torch.optim.AdamW(adapters, weight_decay=0.0)

    def step(self, batch: StepBatch, cursor: Cursor, *, rate: float) -> torch.Tensor:
        """Make one optimiser step on the micro-batches that ZeRO-3 gives this rank; returns the loss."""
        spec, rank, ranks = self._context.spec, self._context.rank, self._context.world_size
        turns = -(-len(batch.micro_batches) // ranks)
        loss_of_all = torch.zeros((), dtype=torch.float64, device=self._device)
        for turn in range(turns):
            index, is_last = turn * ranks + rank, turn == turns - 1
            is_idle = index >= len(batch.micro_batches)
            micro = batch.micro_batches[0 if is_idle else index]
            share = 0.0 if is_idle else micro.share
            self._model.set_requires_gradient_sync(is_last)
            self._model.set_reshard_after_backward(is_last or not self._held.weights)
            seed_dropout(spec, cursor, index)
            tokens, labels = (x.to(self._device, non_blocking=True) for x in (micro.tokens, micro.labels))
            output = self._model(
                input_ids=tokens, position_ids=micro.positions(self._device), use_cache=False
            )
            loss = next_token_loss(output.logits, labels)
            (loss * share * ranks).backward()  # gradients are averaged over the ranks
            loss_of_all += share * loss.detach().double()
        if clip := float(spec.stitch.clip):
            nn.utils.clip_grad_norm_(self._adapters, clip)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        dist.all_reduce(loss_of_all)
        return loss_of_all
