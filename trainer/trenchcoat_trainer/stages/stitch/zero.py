"""Several ranks under DeepSpeed ZeRO-3: built in partitions, filled Cria by Cria, adapters' state by name."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers.initialization import no_init_weights
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.spec import Stitch, TrenchcoatSpec

from trenchcoat_trainer.checkpoints.shards import EMBEDDINGS, HEAD, load_object
from trenchcoat_trainer.models.adapters import inject_adapters
from trenchcoat_trainer.models.artifacts import (
    Tensors,
    layer_weights,
)
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.models.modeling_trenchcoat import TrenchcoatDecoderLayer as LAYER
from trenchcoat_trainer.models.modeling_trenchcoat import TrenchcoatLlamaForCausalLM
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.ranks import joined
from trenchcoat_trainer.runtime.training import Cursor
from trenchcoat_trainer.stages.stitch.batches import StepBatch
from trenchcoat_trainer.stages.stitch.engine import MOMENTS, next_token_loss, seed_dropout
from trenchcoat_trainer.stages.stitch.loading import Portion, fill_partitions
from trenchcoat_trainer.stages.stitch.memory import EVERYTHING_HELD, Held, Sizes, decide, layer_parameters
from trenchcoat_trainer.stages.stitch.subject import Subject, put_form_parameters, take_form_parameters

EVERYTHING = 10**15
"""Parameters: more than any model has."""


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed, told which device to use, and without its habit of compiling helpers.

    It would build a shared-memory helper for CPU processes at first use, which needs a compiler and a
    writable folder; gloo does the same work without.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    # DeepSpeed 0.19 calls functions that torch 2.13 renames, once per collective.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.distributed.*is deprecated")
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def open_engine(
    context: StageContext,
    subject: Subject,
    held: Held | None,
    device: torch.device,
    start: Tensors,
    changes: dict[str, Any] | None = None,
) -> Iterator["Zero"]:
    """Join the other ranks and build the subject over them, its adapters as `start` has them.

    Args:
        context: the stage's context.
        subject: whose adapters are trained.
        held: what stays in memory; None to decide by the devices.
        device: this rank's.
        start: the adapters; empty where they begin.
        changes: to DeepSpeed's settings of ZeRO, for benchmarks.
    """
    deepspeed = import_deepspeed(device)
    with process_group(deepspeed, context, device):
        held = held or agreed(context.spec, subject.config, device)
        config = zero_config(context.spec, context.world_size, subject.config, held)
        config["zero_optimization"] |= changes or {}
        model = build_student(deepspeed, context, subject, config, device)
        settings = context.spec.stitch
        adapters = inject_adapters(model, settings.lora, seed=context.spec.seed, purpose="stitch")
        start = start or {name: parameter.detach().clone() for name, parameter in adapters.items()}
        for name, parameter in adapters.items():
            parameter.data.copy_(start[name])
        # The backward hook of a layer, which DeepSpeed relies on, needs an input with a gradient.
        model.enable_input_require_grads()
        optimizer = torch.optim.AdamW(adapters.values(), lr=float(settings.learning_rate), weight_decay=0.0)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        zero = Zero(deepspeed, context, engine, adapters)
        zero.set_adapters(start)  # unrounded
        if not held.graph:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        engine.train()
        yield zero


@contextmanager
def process_group(deepspeed: Any, context: StageContext, device: torch.device) -> Iterator[None]:
    """Join the other ranks; a rank alone, as benchmarks have it, needs a group but no network."""
    if context.world_size > 1:
        with joined(context.rank, context.world_size, device, context.stop):
            # DeepSpeed takes the number of ranks from here.
            deepspeed.init_distributed(dist.get_backend(), auto_mpi_discovery=False, verbose=False)
            yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    try:
        yield
    finally:
        deepspeed.comm.destroy_process_group()  # and what DeepSpeed remembers of the group


def agreed(spec: TrenchcoatSpec, student: TrenchcoatLlamaConfig, device: torch.device) -> Held:
    """Decide what is held for this rank's device, alike on all ranks: ZeRO-3 needs them to do the same."""
    if device.type != "cuda":
        return EVERYTHING_HELD
    free = torch.tensor(float(torch.cuda.mem_get_info(device)[0]), device=device)
    dist.all_reduce(free, dist.ReduceOp.MIN)
    return decide(Sizes.of(spec, student), free.item(), dist.get_world_size())


def accumulation_steps(stitch: Stitch, world_size: int) -> int:
    """Return how many micro-batches each rank takes per optimiser step, idle ones included."""
    micro_batches = -(-stitch.batch_size // stitch.micro_batch_size)
    return -(-micro_batches // world_size)


def zero_config(
    spec: TrenchcoatSpec, world_size: int, student: TrenchcoatLlamaConfig, held: Held
) -> dict[str, Any]:
    """Return DeepSpeed's configuration."""
    stitch = spec.stitch
    accumulation = accumulation_steps(stitch, world_size)
    layer = layer_parameters(student)
    zero = {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        # A layer's weights are gathered at once. By default every small module inside it is hooked, and on a
        # GPU those hooks take longer than what they surround.
        "leaf_module": {"classes": [f"{LAYER.__module__}.{LAYER.__qualname__}"]},
        # While a layer computes, the next one's weights arrive.
        "stage3_prefetch_bucket_size": max(50_000_000, layer),
        "stage3_max_live_parameters": max(1_000_000_000, 2 * layer),
    }
    if held.weights:
        zero["stage3_param_persistence_threshold"] = EVERYTHING
        # DeepSpeed's own linear layer, which keeps gathered weights out of the graph, has nothing to save.
        zero["memory_efficient_linear"] = False
    return {
        "train_micro_batch_size_per_gpu": stitch.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": stitch.micro_batch_size * accumulation * world_size,
        "gradient_clipping": float(stitch.clip),
        "bf16": {"enabled": spec.dtype == "bfloat16"},
        "zero_optimization": zero,
        # torch's own AdamW: DeepSpeed's would be compiled at first use.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def build_student(
    deepspeed: Any, context: StageContext, subject: Subject, config: dict[str, Any], device: torch.device
) -> TrenchcoatLlamaForCausalLM:
    """Build the subject partitioned over the ranks; a student with what the Crias learned, LoRA merged in.

    Besides its own partition a rank holds one layer's weights at most. What attention transfer trained
    becomes plain tensors, the same on all ranks: as parameters DeepSpeed would round them to the format of
    the weights.
    """
    student_config = subject.config
    # transformers would gather every module again to fill it with random numbers, and broadcast them.
    with no_init_weights(), deepspeed.zero.Init(config_dict_or_path=config):
        model = TrenchcoatLlamaForCausalLM(student_config)
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(student_config).to(
        device
    )  # which zero.Init may have rounded
    names = {parameter: name for name, parameter in model.named_parameters()}
    head = [model.model.norm] if student_config.tie_word_embeddings else [model.model.norm, model.lm_head]
    portions = [
        Portion([model.model.embed_tokens], partial(load_object, context, EMBEDDINGS, "cpu")),
        Portion(head, partial(load_object, context, HEAD, "cpu")),
    ]
    for cria in context.crias:
        for number in cria.layers:
            layer = model.model.layers[number]
            take_form_parameters(layer)
            portions.append(Portion([layer], partial(_read_layer, context, subject, cria, number)))
        put_form_parameters(model, subject.form_parameters(context, cria), device)
    fill_partitions(portions, names)
    return model


def _read_layer(context: StageContext, subject: Subject, cria: CriaRange, number: int) -> Tensors:
    return layer_weights(context, cria, number, *subject.adapters(context, cria))


class Zero:
    """The engine of several ranks: `Engine`."""

    def __init__(
        self, deepspeed: Any, context: StageContext, engine: Any, adapters: dict[str, nn.Parameter]
    ) -> None:
        self._utils = deepspeed.utils
        self._context = context
        self._engine = engine
        self._optimizer = engine.optimizer
        self._adapters = adapters

    def step(
        self, batch: StepBatch, cursor: Cursor, *, rate: float, wishes: tuple[bool, ...] = ()
    ) -> torch.Tensor:
        """Make one optimiser step: `Engine.step`.

        Micro-batch i goes to rank i modulo their number; a rank that has none left runs its first once more
        with weight 0, because ZeRO-3 gathers weights from all ranks in every forward pass.
        """
        spec, rank, ranks = self._context.spec, self._context.rank, self._context.world_size
        engine, turns = self._engine, -(-len(batch.micro_batches) // ranks)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        # DeepSpeed divides losses by the accumulation steps of its configuration, however many there are
        # (findings/deepspeed-divides-by-configured-accumulation.sh), and averages over the ranks: undo both,
        # the shares add up to 1.
        weight = accumulation_steps(spec.stitch, ranks) * ranks
        told = torch.tensor([0.0, *map(float, wishes)], dtype=torch.float64, device=engine.device)
        for turn in range(turns):
            index = turn * ranks + rank
            is_idle = index >= len(batch.micro_batches)
            micro = batch.micro_batches[0 if is_idle else index]
            share = 0.0 if is_idle else micro.share
            tokens, labels = (x.to(engine.device, non_blocking=True) for x in (micro.tokens, micro.labels))
            seed_dropout(spec, cursor, index)
            positions = micro.positions(engine.device)
            loss = next_token_loss(
                engine(input_ids=tokens, position_ids=positions, use_cache=False).logits, labels
            )
            # By its own count it would wait for as many micro-batches in a step of longer sequences.
            engine.set_gradient_accumulation_boundary(turn == turns - 1)
            engine.backward(loss * share * weight)
            engine.step()
            told[0] += share * loss.detach().double()
        told = told.float()
        dist.all_reduce(told)
        return told

    def adapters(self) -> Tensors:
        """Return the masters: `Engine.adapters`."""
        return {
            name: self._utils.safe_get_full_fp32_param(parameter).float().cpu()
            for name, parameter in self._adapters.items()
        }

    def set_adapters(self, values: Tensors) -> None:
        """Set the masters; the working copies follow at the next step, so they must hold the same already."""
        for name, parameter in self._adapters.items():
            self._utils.safe_set_local_fp32_param(parameter, own_partition(parameter, values[name]))

    def moments(self) -> Tensors:
        """Return AdamW's moments: `Engine.moments`."""
        return {
            f"{moment}.{name}": self._utils.safe_get_full_optimizer_state(parameter, moment).float().cpu()
            for name, parameter in self._adapters.items()
            for moment in MOMENTS
        }

    def set_moments(self, values: Tensors, steps: int) -> None:
        """Set AdamW's moments: `Engine.set_moments`."""
        for flat in self._optimizer.fp32_partitioned_groups_flat:
            self._optimizer.optimizer.state[flat] = {
                "step": torch.tensor(float(steps)),
                **{moment: torch.zeros_like(flat) for moment in MOMENTS},
            }
        for name, parameter in self._adapters.items():
            for moment in MOMENTS:
                partition = own_partition(parameter, values[f"{moment}.{name}"])
                self._utils.safe_set_local_optimizer_state(parameter, partition, moment)

    def wait(self) -> None:
        """Wait for all ranks to come here."""
        dist.barrier()


def own_partition(parameter: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """Cut this rank's partition out of a whole parameter's value, padded as ZeRO-3 pads."""
    size = parameter.ds_tensor.numel()
    flat = F.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
    return flat.narrow(0, size * dist.get_rank(), size).to(parameter.ds_tensor.device)
