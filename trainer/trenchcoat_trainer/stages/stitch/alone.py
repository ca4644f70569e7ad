"""One rank by itself: no partitions, and on a GPU whole steps as CUDA graphs.

A small model's kernels end before the host has launched the next ones. A graph launches all of a forward and
backward pass at once; nothing about the numbers changes.

Shape letters: B batch, T tokens, D head dimension.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from trenchcoat_trainer.checkpoints.shards import load_rest_weights
from trenchcoat_trainer.models.adapters import inject_adapters
from trenchcoat_trainer.models.artifacts import Tensors, layer_weights, weight_dtype
from trenchcoat_trainer.models.modeling_trenchcoat import TrenchcoatLlamaForCausalLM
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.graphs import Replayed
from trenchcoat_trainer.runtime.training import Cursor
from trenchcoat_trainer.stages.stitch.batches import MicroBatch, StepBatch
from trenchcoat_trainer.stages.stitch.engine import MOMENTS, next_token_loss, seed_dropout
from trenchcoat_trainer.stages.stitch.memory import Held
from trenchcoat_trainer.stages.stitch.subject import Subject, put_form_parameters, take_form_parameters


@contextmanager
def open_engine(
    context: StageContext,
    subject: Subject,
    held: Held,
    device: torch.device,
    start: Tensors,
    *,
    graphs: bool | None = None,
) -> Iterator["Alone"]:
    """Build the subject on `device`, its adapters as `start` has them; where that is empty, as they begin.

    `graphs` is whether to capture graphs, None to do so where that can be done.
    """
    if graphs is None:
        # Layers that run twice draw dropout twice alike, which no graph can.
        graphs = held.graph and device.type == "cuda"
    model = build_model(context, subject, device)
    adapters = inject_adapters(model, context.spec.stitch.lora, seed=context.spec.seed, purpose="stitch")
    for name, value in start.items():
        adapters[name].data.copy_(value)
    if not held.graph:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    yield Alone(context, model.train(), adapters, graphs=graphs)


def build_model(context: StageContext, subject: Subject, device: torch.device) -> TrenchcoatLlamaForCausalLM:
    """Build the subject; a student with what the Crias learned, LoRA merged in.

    The host never holds more than a layer's weights. What attention transfer trained becomes plain tensors.
    """
    config, dtype = subject.config, weight_dtype(context)
    with torch.device("meta"):
        model = TrenchcoatLlamaForCausalLM(config)
    decoder, rest = model.model, load_rest_weights(context)
    place(decoder.embed_tokens, "model.embed_tokens.", rest, device, dtype)
    place(decoder.norm, "model.norm.", rest, device, dtype)
    if config.tie_word_embeddings:
        model.lm_head.weight = decoder.embed_tokens.weight
    else:
        place(model.lm_head, "lm_head.", rest, device, dtype)
    decoder.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    for cria in context.crias:
        adapters = subject.adapters(context, cria)
        for number in cria.layers:
            layer = decoder.layers[number]
            take_form_parameters(layer)
            weights = layer_weights(context, cria, number, *adapters)
            place(layer, f"model.layers.{number}.", weights, device, dtype)
        put_form_parameters(model, subject.form_parameters(context, cria), device)
    return model.requires_grad_(False)


def place(module: nn.Module, prefix: str, weights: Tensors, device: torch.device, dtype: torch.dtype) -> None:
    """Put weights, by their names in a checkpoint behind `prefix`, into a module that has none yet.

    Raises:
        RuntimeError: one is missing, or of another shape.
    """
    own = {name: weights[prefix + name] for name, _ in module.named_parameters() if prefix + name in weights}
    module.load_state_dict({name: tensor.to(device, dtype) for name, tensor in own.items()}, assign=True)


class Alone:
    """The engine of one rank: `Engine`."""

    def __init__(
        self,
        context: StageContext,
        model: TrenchcoatLlamaForCausalLM,
        adapters: dict[str, nn.Parameter],
        *,
        graphs: bool,
    ) -> None:
        """Take a model on its device, with `adapters` of fp32 in it; `graphs` needs a GPU."""
        self._spec = context.spec
        self._model = model
        self._graphs = graphs
        self._device = next(iter(adapters.values())).device
        self._names = list(adapters)
        self._masters = [parameter.detach().clone().requires_grad_() for parameter in adapters.values()]
        dtype = weight_dtype(context)
        for parameter in adapters.values():
            parameter.data = parameter.data.to(dtype)
        self._working = list(adapters.values())
        for tensor in (*self._masters, *self._working):
            tensor.grad = torch.zeros_like(tensor)
        on_gpu = self._device.type == "cuda"
        self._rate = torch.zeros((), device=self._device)
        self._optimizer = torch.optim.AdamW(
            self._masters,
            lr=self._rate if on_gpu else 0.0,
            weight_decay=0.0,
            foreach=on_gpu,
            capturable=on_gpu,
        )
        self._loss = torch.zeros((), dtype=torch.float64, device=self._device)
        self._passes: dict[torch.Size, Pass] = {}
        self._update = Replayed(self._make_update, graphs, name="the stitch's optimiser step")

    def step(
        self, batch: StepBatch, cursor: Cursor, *, rate: float, wishes: tuple[bool, ...] = ()
    ) -> torch.Tensor:
        """Make one optimiser step: `Engine.step`."""
        self._loss.zero_()
        for index, micro in enumerate(batch.micro_batches):
            seed_dropout(self._spec, cursor, index)
            shape = micro.tokens.shape
            if shape not in self._passes:
                self._passes[shape] = Pass(self, shape)
            self._passes[shape](micro)
        self._rate.fill_(rate)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate if self._device.type == "cuda" else rate
        self._update()
        told = torch.tensor([float(wish) for wish in wishes], device=self._device)
        return torch.cat([self._loss.float()[None], told])

    def adapters(self) -> Tensors:
        """Return the masters: `Engine.adapters`."""
        return {n: t.detach().cpu().clone() for n, t in zip(self._names, self._masters, strict=True)}

    def moments(self) -> Tensors:
        """Return AdamW's moments: `Engine.moments`."""
        return {
            f"{moment}.{name}": self._optimizer.state[master][moment].cpu().clone()
            for name, master in zip(self._names, self._masters, strict=True)
            for moment in MOMENTS
        }

    def set_moments(self, values: Tensors, steps: int) -> None:
        """Set AdamW's moments: `Engine.set_moments`."""
        at = self._device if self._device.type == "cuda" else None
        for name, master in zip(self._names, self._masters, strict=True):
            self._optimizer.state[master] = {
                "step": torch.tensor(float(steps), device=at),
                **{moment: values[f"{moment}.{name}"].to(self._device) for moment in MOMENTS},
            }

    def wait(self) -> None:
        """There is nobody to wait for."""

    def rope(self, start: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and sine of `tokens` positions from `start` on, [1, T, D] each."""
        positions = torch.arange(start, start + tokens, device=self._device)[None]
        return self._model.model.rotary_emb(self._working[0], position_ids=positions)

    def loss(
        self, tokens_BT: torch.Tensor, labels_BT: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Run the model forward; nothing in it waits for the device."""
        decoder = self._model.model
        hidden_BTE = decoder.embed_tokens(tokens_BT)
        for layer in decoder.layers:
            hidden_BTE = layer(hidden_BTE, position_embeddings=rope, attention_mask=None)
        return next_token_loss(self._model.lm_head(decoder.norm(hidden_BTE)), labels_BT)

    def accumulate(self, loss: torch.Tensor, share: torch.Tensor) -> None:
        """Go backward, and add `share` of the gradient, in fp32, and of the loss to what the step has."""
        (loss * share).backward()
        gradients = [parameter.grad for parameter in self._working]
        torch._foreach_add_([master.grad for master in self._masters], [g.float() for g in gradients])
        torch._foreach_zero_(gradients)
        self._loss += loss.detach().double() * share

    @property
    def graphs(self) -> bool:
        """Whether passes are launched as CUDA graphs."""
        return self._graphs

    def _make_update(self) -> None:
        clip = float(self._spec.stitch.clip)
        if clip:
            nn.utils.clip_grad_norm_(self._masters, clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        with torch.no_grad():
            torch._foreach_copy_(self._working, self._masters)


class Pass:
    """Forward and backward of micro-batches of one shape, over buffers that a graph finds again."""

    def __init__(self, engine: Alone, shape: torch.Size) -> None:
        cosine, sine = engine.rope(0, shape[1])
        self._engine = engine
        self._rope = (cosine.clone(), sine.clone())
        self._tokens, self._labels = (
            torch.empty(shape, dtype=torch.long, device=cosine.device) for _ in "tl"
        )
        self._share = torch.zeros((), device=cosine.device)
        self._run = Replayed(self._compute, engine.graphs, name="the stitch's forward and backward pass")

    def __call__(self, micro: MicroBatch) -> None:
        """Add a micro-batch's share to the step's gradient and loss."""
        self._tokens.copy_(micro.tokens, non_blocking=True)
        self._labels.copy_(micro.labels, non_blocking=True)
        for mine, new in zip(self._rope, self._engine.rope(micro.start, micro.tokens.shape[1]), strict=True):
            mine.copy_(new)
        self._share.fill_(micro.share)
        self._run()

    def _compute(self) -> None:
        self._engine.accumulate(self._engine.loss(self._tokens, self._labels, self._rope), self._share)
