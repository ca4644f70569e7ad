"""LoRA by Cria: adapters on one Cria's attention projections, the student's attention in place and frozen.

Source: LoLCATs (arXiv 2410.10254), sections 3.2 (low-rank linearizing) and 3.3 (by blocks of layers). What
attention transfer trained stays as it left it, as in the paper. Shape letters: B batch, T tokens, E hidden
size, L layers that do not keep softmax attention.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from trenchcoat_api import spec

from trenchcoat_trainer.data import Batch, Starts
from trenchcoat_trainer.layers import boundary_error
from trenchcoat_trainer.layers.llama import softmax_attention
from trenchcoat_trainer.models.adapters import adapted_modules, adapter_delta, base_layer, inject_adapters
from trenchcoat_trainer.models.cria import CriaModel, Rope
from trenchcoat_trainer.models.modeling_trenchcoat import TrenchcoatAttention
from trenchcoat_trainer.seeds import derived_seed
from trenchcoat_trainer.stages.cria.optimizer import NamedAdamW
from trenchcoat_trainer.stages.cria.phase import GrowthBound, Told, require_finite
from trenchcoat_trainer.stages.cria.running import Draw, MicroBatches, Part, Runner
from trenchcoat_trainer.stages.cria.transfer import finish_layer, loss_weights
from trenchcoat_trainer.students import Heads, LossWeights

GradientStep = Callable[..., torch.Tensor]


def layerwise_step(
    cria: CriaModel,
    hidden_BTE: torch.Tensor,
    *,
    scale: float,
    seed: int,
    weights: LossWeights,
    start: int = 0,
) -> torch.Tensor:
    """Add one micro-batch's gradient to the adapters: each layer against the teacher's, layer by layer.

    The student's attention (adapters on) is compared with the teacher's (softmax, adapters off) by
    the losses of attention transfer. Teacher forced, so one pass serves both, and layers share no gradient.

    Args:
        cria: the layers, with adapters.
        hidden_BTE: raw residual stream at the Cria's first boundary, in the weights' dtype.
        scale: factor on the gradient, this micro-batch's share of the step.
        seed: decides dropout, together with the layer's number.
        weights: weights of the losses.
        start: position of the first token.

    Returns:
        Loss of each student layer, [L], fp32, not scaled.
    """
    rope = cria.rope(hidden_BTE, start)
    last = max((n for n, _ in cria.student_layers()), default=-1)
    losses = []
    for name, layer in cria.layers.items():
        attention = layer.self_attn
        with torch.no_grad():
            normed_BTE = layer.input_layernorm(hidden_BTE)
        torch.manual_seed(derived_seed(seed, name))
        student, of_teacher = _both_sides(attention, normed_BTE, rope)
        if attention.softmax:
            hidden_BTE = finish_layer(layer, hidden_BTE, softmax_attention(*of_teacher))
            continue
        result = attention.student.distill_loss(student, of_teacher, attention.student_parameters(), weights)
        (result.loss * scale).backward()
        losses.append(result.loss.detach())
        if int(name) == last:
            break
        hidden_BTE = finish_layer(layer, hidden_BTE, softmax_attention(*of_teacher))
    return torch.stack(losses)


def _both_sides(attention: TrenchcoatAttention, normed_BTE: torch.Tensor, rope: Rope) -> tuple[Heads, Heads]:
    """Return q, k, v of the student and of the teacher; the same tensor where no adapter stands."""
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    adapted = [base_layer(projection) is not projection for projection in projections]
    with torch.no_grad():
        base = [base_layer(projection)(normed_BTE) for projection in projections]
        teacher = Heads(*attention.rotate(*base, rope))
    with_adapters = [
        x + adapter_delta(projection, normed_BTE).to(x.dtype) if has_adapter else x
        for projection, has_adapter, x in zip(projections, adapted, base, strict=True)
    ]
    student = attention.rotate(*with_adapters, rope)
    chosen = [s if has_adapter else t for has_adapter, s, t in zip(adapted, student, teacher, strict=True)]
    return Heads(*chosen), teacher


def block_step(
    cria: CriaModel,
    hidden_BTE: torch.Tensor,
    target_BTE: torch.Tensor | None,
    *,
    scale: float,
    seed: int,
    start: int = 0,
) -> torch.Tensor:
    """Add one micro-batch's gradient to the adapters: the Cria's output against the next boundary.

    The student runs as it will at inference, its own outputs passed on. The loss of a token is the squared
    error over the target's squared length, so that no long token outweighs the others. Without a stored
    target (the last Cria) the teacher's layers give it.

    Args:
        cria: the layers, with adapters.
        hidden_BTE: raw residual stream at the Cria's first boundary, in the weights' dtype.
        target_BTE: the same at the next boundary, or None.
        scale: factor on the gradient, this micro-batch's share of the step.
        seed: decides dropout, together with the layer's number.
        start: position of the first token.

    Returns:
        Loss, averaged over tokens, a scalar in fp32, not scaled.
    """
    if target_BTE is None:
        with torch.no_grad(), teacher(cria):
            target_BTE = cria(hidden_BTE, start)
    rope = cria.rope(hidden_BTE, start)

    def run_layer(name: str, hidden_BTE: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(derived_seed(seed, name))
        return cria.layers[name](hidden_BTE, position_embeddings=rope)

    for name in cria.layers:
        if hidden_BTE.is_cuda:
            # A layer's graph at 405B is several GB: hold the boundaries alone and run each layer twice.
            hidden_BTE = checkpoint(
                run_layer, name, hidden_BTE, use_reentrant=False, preserve_rng_state=False
            )
        else:
            hidden_BTE = run_layer(name, hidden_BTE)
    loss = boundary_error(hidden_BTE, target_BTE)
    (loss * scale).backward()
    return loss.detach()


@contextmanager
def teacher(cria: CriaModel) -> Iterator[None]:
    """Within this context the Cria is the teacher's: softmax attention, adapters off."""
    adapted = adapted_modules(cria).values()
    cria.use(softmax=True)
    for module in adapted:
        module.enable_adapters(False)
    try:
        yield
    finally:
        cria.use(softmax=False)
        for module in adapted:
            module.enable_adapters(True)


class LoraPhase:
    """Trains the adapters of one Cria by either objective."""

    name = "lora"

    def __init__(
        self,
        cria: CriaModel,
        spec: spec.TrenchcoatSpec,
        layerwise: GradientStep = layerwise_step,
        block: GradientStep = block_step,
        starts: Starts | None = None,
        runner: Runner | None = None,
    ) -> None:
        """Put adapters on `cria`.

        Args:
            cria: the layers.
            spec: the spec.
            layerwise: computes gradients, as `layerwise_step`.
            block: computes gradients, as `block_step`.
            starts: where micro-batches start; None for position 0.
            runner: runs steps; None for micro-batch after micro-batch.
        """
        settings = spec.cria_lora
        self._by_layer = settings.objective == "layerwise"
        self.epochs, self.batch_size = settings.epochs, settings.batch_size
        self._cria = cria
        self._settings = settings
        self._seed = spec.seed
        self._starts = starts or Starts()
        self._run = runner or MicroBatches(next(cria.parameters()).device)
        self._weights = loss_weights(spec.transfer)
        self._layerwise_step, self._block_step = layerwise, block
        self.adapters = inject_adapters(cria, settings.lora, seed=spec.seed, purpose="cria")
        for module in adapted_modules(cria).values():
            module.lora_dropout.train()
        self._layers = [n for n, _ in cria.student_layers()]
        self._loss_layers = self._layers if self._by_layer else [cria.cria.last]
        self._adamw = NamedAdamW(self._groups(), float(settings.learning_rate))
        self._done = 0
        self._begun: deque[Told | None] = deque()
        self._bound = GrowthBound(self.name, cria.cria, self._loss_layers, float(spec.gates.max_loss_growth))

    def _groups(self) -> dict[str, dict[str, torch.nn.Parameter]]:
        """Group adapters for clipping: by layer where layers are independent, else all together."""
        if not self._by_layer:
            return {"all": self.adapters}
        groups: dict[str, dict[str, torch.nn.Parameter]] = {str(n): {} for n in self._layers}
        for name, parameter in self.adapters.items():
            layer = name.split(".layers.")[1].split(".")[0]
            if layer in groups:  # layers that keep softmax attention have nothing to learn here
                groups[layer][name] = parameter
        return groups

    def step(self, batch: Batch, *, epoch: int, step: int) -> float:
        """Make one optimiser step: `begin`, then `end`."""
        self.begin(batch, epoch=epoch, step=step)
        return self.end()

    def begin(self, batch: Batch, *, epoch: int, step: int) -> None:
        """Begin one optimiser step: `Phase.begin`."""
        if self._by_layer and not self._layers:
            self._begun.append(None)
            return
        size = self._settings.micro_batch_size
        draws = [
            Draw(
                start=self._starts.start(self.name, epoch, step, index),
                seed=derived_seed(self._seed, "dropout", epoch, step, index),
            )
            for index in range(-(-len(batch.inputs) // size))
        ]
        self._begun.append(Told(self._run(batch, draws, size, self._update)))

    def end(self) -> float:
        """Judge the first step begun; returns its loss, a mean over layers where there is one for each.

        Raises:
            DivergedError: a loss or gradient is not a number, or a loss grew beyond the bound.
        """
        told, layers = self._begun.popleft(), self._loss_layers
        if told is None:
            return 0.0
        values, gradients = told.read()
        require_finite(self.name, self._cria.cria, layers, values, self._done)
        require_finite(self.name, self._cria.cria, layers, gradients, self._done, "gradient norm")
        self._bound.check(values, self._done)
        self._done += 1
        return sum(values) / len(values)

    @property
    def decides(self) -> bool:
        """Whether a schedule waits for the last step: there is none."""
        return False

    def _update(self, parts: Iterable[Part]) -> torch.Tensor:
        """Update the adapters; returns losses and norms of gradients, [2, losses], on the device."""
        self._adamw.clear()
        losses = torch.zeros(len(self._loss_layers), device=next(iter(self.adapters.values())).device)
        for part in parts:
            options = {"scale": part.share, "seed": part.seed, "start": part.start}
            if self._by_layer:
                loss = self._layerwise_step(self._cria, part.inputs, **options, weights=self._weights)
            else:
                loss = self._block_step(self._cria, part.inputs, part.targets, **options)
            losses += part.share * loss
        return torch.stack([losses, self._adamw.step(float(self._settings.clip))])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return adapters and the optimiser's state."""
        return {**{name: p.detach() for name, p in self.adapters.items()}, **self._adamw.tensors()}

    def state(self) -> dict[str, Any]:
        """Return how many steps were made, and the losses of the first."""
        return {"done": self._done, "first": self._bound.first}

    def restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        with torch.no_grad():
            for name, parameter in self.adapters.items():
                parameter.copy_(tensors[name])
        self._adamw.restore(tensors)
        self._done = state["done"]
        self._bound.first = state.get("first")  # none in a checkpoint of an earlier version
