"""Attention transfer: the parameters of a Cria's student attention learn to imitate softmax attention.

Source: LoLCATs (arXiv 2410.10254), section 3.2. Shape letters: B batch, T tokens, E hidden size, H heads,
D head dimension, L layers of the Cria that do not keep softmax attention.
"""

import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from trenchcoat_api import spec

from trenchcoat_trainer.data import Batch, Starts
from trenchcoat_trainer.layers.llama import softmax_attention
from trenchcoat_trainer.models.adapters import base_layer
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.models.modeling_trenchcoat import TrenchcoatDecoderLayer
from trenchcoat_trainer.seeds import derived_seed
from trenchcoat_trainer.stages.cria.optimizer import NamedAdamW
from trenchcoat_trainer.stages.cria.phase import GrowthBound, Told, require_finite
from trenchcoat_trainer.stages.cria.plateau import Plateau
from trenchcoat_trainer.stages.cria.running import Draw, MicroBatches, Part, Runner
from trenchcoat_trainer.students import LossWeights

TransferStep = Callable[..., torch.Tensor]


def transfer_step(
    cria: CriaModel,
    hidden_BTE: torch.Tensor,
    *,
    scale: float,
    weights: LossWeights,
    drop_window: bool = False,
    start: int = 0,
) -> torch.Tensor:
    """Add one micro-batch's gradient to every layer's parameters, holding one layer's graph at a time.

    Teacher forced: each layer passes the softmax output on, so every layer sees the teacher's own input and
    layers share no gradient. What follows the last layer's attention is not computed.

    Args:
        cria: the layers; what attention transfer trains requires gradients.
        hidden_BTE: raw residual stream at the Cria's first boundary, in the weights' dtype.
        scale: factor on the gradient, this micro-batch's share of the step.
        weights: weights of the losses.
        drop_window: compare the student without its softmax window with the teacher, over all keys.
        start: position of the first token.

    Returns:
        Loss of each student layer, [L], fp32, not scaled.
    """
    options = {"scale": scale, "weights": weights, "drop_window": drop_window, "start": start}
    last = max((n for n, _ in cria.student_layers()), default=-1)
    results = itertools.islice(_layer_by_layer(cria, hidden_BTE, **options), last + 1 - cria.cria.first)
    return torch.stack([loss for loss in results if loss is not None])


def transfer_through(
    cria: CriaModel, hidden_BTE: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `transfer_step` does, and run the teacher to the Cria's end.

    Returns:
        Losses as `transfer_step` returns them, and the raw residual stream at the next boundary, [B, T, E]:
        on the CPU bit for bit what collection computes.
    """
    *losses, output_BTE = _layer_by_layer(cria, hidden_BTE, **options)
    of_students = [loss for loss in losses if loss is not None]
    return torch.stack(of_students) if of_students else output_BTE.new_zeros(0), output_BTE


def _layer_by_layer(
    cria: CriaModel,
    hidden_BTE: torch.Tensor,
    *,
    scale: float,
    weights: LossWeights,
    drop_window: bool = False,
    start: int = 0,
) -> Iterator[torch.Tensor | None]:
    """Yield each layer's loss, None for one kept softmax, and then the stream that leaves the last layer."""
    rope = cria.rope(hidden_BTE, start)
    for layer in cria.layers.values():
        attention = layer.self_attn
        if attention.softmax:
            with torch.no_grad():
                hidden_BTE = layer(hidden_BTE, position_embeddings=rope)
            yield None
            continue
        with torch.no_grad():
            heads = attention.project(layer.input_layernorm(hidden_BTE), rope)
        result = attention.student.transfer_loss(
            heads, attention.student_parameters(), weights, drop_window=drop_window
        )
        if result.loss.requires_grad:  # a layer may have nothing to train
            (result.loss * scale).backward()
        yield result.loss.detach()
        # Not result.output, which a form computes in its own way: by the teacher's kernel, so that what is
        # passed on is what collection stores.
        hidden_BTE = finish_layer(layer, hidden_BTE, softmax_attention(*heads))
    yield hidden_BTE


@torch.no_grad()
def finish_layer(
    layer: TrenchcoatDecoderLayer, hidden_BTE: torch.Tensor, y_BHTD: torch.Tensor
) -> torch.Tensor:
    """Complete a layer from its attention's output before o_proj, adapters left out; returns [B, T, E]."""
    o_proj = base_layer(layer.self_attn.o_proj)
    hidden_BTE = hidden_BTE + o_proj(y_BHTD.transpose(1, 2).flatten(2))
    return hidden_BTE + layer.mlp(layer.post_attention_layernorm(hidden_BTE))


def drops_window(probability: float, seed: int, epoch: int, step: int) -> bool:
    """Whether this optimiser step drops the window: a pure function, the same in every Cria and attempt.

    Hybrids tend to leave the work to their window (arXiv 2510.05901); a step without it makes the rest
    imitate the teacher over all keys by itself.
    """
    return random.Random(derived_seed(seed, "window dropout", epoch, step)).random() < probability  # noqa: S311


def loss_weights(settings: spec.Transfer) -> LossWeights:
    """Return the weights of the losses that spec.transfer gives."""
    return LossWeights(mse=float(settings.mse_weight), xent=float(settings.xent_weight))


class TransferPhase:
    """Trains every layer's maps by its own schedule, clip and best checkpoint.

    Nothing of one layer depends on another, so the result does not depend on how layers are grouped.
    Schedules and best checkpoints look at steps with the window alone: it is the whole that has to be good.
    """

    name = "transfer"

    def __init__(
        self,
        cria: CriaModel,
        spec: spec.TrenchcoatSpec,
        steps: int,
        step: TransferStep = transfer_step,
        starts: Starts | None = None,
        runner: Runner | None = None,
    ) -> None:
        """Set up the maps' training.

        Args:
            cria: the layers; their maps will be trained.
            spec: the spec; its seed decides which steps drop the window.
            steps: number of optimiser steps to come.
            step: computes gradients, as `transfer_step`.
            starts: where micro-batches start; None for position 0.
            runner: runs steps; None for micro-batch after micro-batch.
        """
        settings = spec.transfer
        self._cria = cria
        self._settings = settings
        self._steps = steps
        self._transfer_step = step
        self._weights = loss_weights(settings)
        self._seed = spec.seed
        self._starts = starts or Starts()
        self._run = runner or MicroBatches(next(cria.parameters()).device)
        maps = {name: parameter.requires_grad_() for name, parameter in cria.form_parameters().items()}
        self.epochs, self.batch_size = settings.epochs if maps else 0, settings.batch_size
        self._layers = [n for n, _ in cria.student_layers()] if maps else []
        groups = {
            str(n): {name: p for name, p in maps.items() if name.startswith(f"layers.{n}.")}
            for n in self._layers
        }
        rate = float(settings.learning_rate)
        self._maps, self._groups = maps, groups
        self._adamw = NamedAdamW(groups, rate) if groups else None
        self._schedules = [Plateau.start(settings.plateau, rate) for _ in self._layers]
        self._best = {name: parameter.detach().clone() for name, parameter in maps.items()}
        self._sums = [0.0] * len(self._layers)
        self._count = 0
        self._done = 0
        self._begun: deque[tuple[bool, Told | None]] = deque()
        self._bound = GrowthBound(self.name, cria.cria, self._layers, float(spec.gates.max_loss_growth))

    def step(self, batch: Batch, *, epoch: int, step: int) -> float | None:
        """Make one optimiser step: `begin`, then `end`."""
        self.begin(batch, epoch=epoch, step=step)
        return self.end()

    def begin(self, batch: Batch, *, epoch: int, step: int) -> None:
        """Begin one optimiser step: `Phase.begin`."""
        dropped = drops_window(float(self._settings.window_dropout), self._seed, epoch, step)
        if self._adamw is None:
            self._begun.append((dropped, None))
            return
        size = self._settings.micro_batch_size
        draws = [
            Draw(self._starts.start(self.name, epoch, step, index))
            for index in range(-(-len(batch.inputs) // size))
        ]
        told = self._run(batch, draws, size, partial(self._update, dropped), variant=dropped)
        self._begun.append((dropped, Told(told)))

    def end(self) -> float | None:
        """Judge the first step begun; returns the mean of its losses, None where it dropped the window.

        Raises:
            DivergedError: a layer's loss or gradient is not a number, or its loss grew beyond the bound.
        """
        dropped, told = self._begun.popleft()
        if told is None:
            return 0.0
        values, gradients = told.read()
        require_finite(self.name, self._cria.cria, self._layers, values, self._done)
        require_finite(self.name, self._cria.cria, self._layers, gradients, self._done, "gradient norm")
        if dropped:  # another loss, larger than the whole student's
            self._note(None)
            return None
        self._bound.check(values, self._done)
        self._note(values)
        return sum(values) / len(values)

    @property
    def decides(self) -> bool:
        """Whether the schedule looks at the step last begun: `Phase.decides`."""
        return self._is_due(self._done + len(self._begun))

    def _update(self, dropped: bool, parts: Iterable[Part]) -> torch.Tensor:
        """Update every layer's maps; returns losses and norms of gradients, [2, L], on the device."""
        self._adamw.clear()
        losses = torch.zeros(len(self._layers), device=next(iter(self._maps.values())).device)
        for part in parts:
            losses += part.share * self._transfer_step(
                self._cria,
                part.inputs,
                scale=part.share,
                weights=self._weights,
                drop_window=dropped,
                start=part.start,
            )
        return torch.stack([losses, self._adamw.step(float(self._settings.clip))])

    def _note(self, losses: list[float] | None) -> None:
        self._done += 1
        if losses is not None:
            self._sums = [total + loss for total, loss in zip(self._sums, losses, strict=True)]
            self._count += 1
        if self._is_due(self._done) and self._count:
            self._check()

    def _is_due(self, done: int) -> bool:
        """Whether there is a check after so many steps."""
        every = self._settings.plateau.every
        # The last check takes the remainder, so that it never rests on a few steps alone.
        return done == self._steps or (done % every == 0 and self._steps - done >= every)

    def _check(self) -> None:
        """Keep the layers that are better than ever, by their mean loss since the last check; cut rates."""
        for index, layer in enumerate(self._layers):
            schedule = self._schedules[index]
            if schedule.check(self._sums[index] / self._count):
                for name, parameter in self._groups[str(layer)].items():
                    self._best[name].copy_(parameter.detach())
            self._adamw.set_rate(str(layer), schedule.rate)
        self._sums, self._count = [0.0] * len(self._layers), 0

    def finish(self) -> tuple[dict[str, torch.Tensor], float]:
        """Put each layer's best maps in place; returns them, and the mean of the layers' best losses.

        Where no step kept its window nothing was compared, and the last maps are the best that there are.
        """
        best = [schedule.best for schedule in self._schedules]
        compared = any(math.isfinite(loss) for loss in best)
        with torch.no_grad():
            for name, parameter in self._maps.items():
                if compared or self._done == 0:
                    parameter.copy_(self._best[name])
                else:
                    self._best[name].copy_(parameter)
                parameter.requires_grad_(False)
        return self._best, sum(best) / max(len(best), 1)

    def layer_losses(self) -> dict[str, tuple[float, float]]:
        """Of each layer the first step's loss and the best, by number; none where nothing was compared."""
        first = self._bound.first or []
        losses = zip(self._layers, first, (schedule.best for schedule in self._schedules), strict=False)
        return {str(layer): (before, best) for layer, before, best in losses if math.isfinite(best)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return maps, best maps and the optimiser's state."""
        return {
            **{f"maps.{name}": parameter.detach() for name, parameter in self._maps.items()},
            **{f"best.{name}": tensor for name, tensor in self._best.items()},
            **(self._adamw.tensors() if self._adamw else {}),
        }

    def state(self) -> dict[str, Any]:
        """Return schedules and sums of losses since the last check."""
        return {
            "schedules": [schedule.state() for schedule in self._schedules],
            "sums": self._sums,
            "count": self._count,
            "done": self._done,
            "first": self._bound.first,
        }

    def restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        with torch.no_grad():
            for name, parameter in self._maps.items():
                parameter.copy_(tensors[f"maps.{name}"])
                self._best[name].copy_(tensors[f"best.{name}"])
        self._schedules = [Plateau.restore(item) for item in state["schedules"]]
        self._sums, self._count, self._done = state["sums"], state["count"], state["done"]
        self._bound.first = state.get("first")  # none in a checkpoint of an earlier version
        if self._adamw is not None:
            self._adamw.restore(tensors)
            for layer, schedule in zip(self._layers, self._schedules, strict=True):
                self._adamw.set_rate(str(layer), schedule.rate)
