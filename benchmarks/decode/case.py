"""One case: times and bytes of a model's prefill and of its steps."""

from __future__ import annotations

import contextlib
import fcntl
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache
from trenchcoat_api.spec import Attention, Form, KeyMaps
from trenchcoat_trainer.models import TrenchcoatLlamaForCausalLM
from trenchcoat_trainer.models.decoding_trenchcoat import FixedDecoder
from trenchcoat_trainer.models.student import student_config

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
    "smollm2": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
MODELS = ("teacher", "window", "standard", "lolcats", "lolcats-shared")
ROOM = 512
"""Tokens that may follow a prompt; more than are timed."""
_WINDOW = Attention(form=Form.WINDOW, window=256, first_tokens=4)
_TIMED_SECONDS = 2.0
"""How long a prefill is repeated at most, once it was timed three times."""


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        model: one of `MODELS`.
        shape: one of `SHAPES`.
        batch: prompts.
        context: tokens of each.
        steps: timed; 0 for a prefill alone.
        rounds: of prefill, timed; 0 for steps alone.
        device: of torch.
        dtype: of weights, by torch's name.
        turn: file that is locked by whoever uses the device, where cases run side by side.
    """

    model: str
    shape: str
    batch: int
    context: int
    steps: int
    rounds: int
    device: str
    dtype: str
    turn: Path | None


def _attention_of(model: str, layers: int) -> Attention:
    """The student's attention; `standard` lets every fourth layer see everything, about as that preset."""
    lolcats = Attention(form=Form.LOLCATS)
    return {
        "window": _WINDOW,
        "standard": _WINDOW.model_copy(update={"keep_softmax_layers": list(range(0, layers, 4))}),
        "lolcats": lolcats,
        "lolcats-shared": lolcats.model_copy(update={"key_maps": KeyMaps.PER_KEY_VALUE_HEAD}),
    }[model]


class _Clock:
    """Times of functions on a device, in milliseconds."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def median(self, function: Callable[[], Any], rounds: int) -> float:
        times: list[float] = []
        while len(times) < rounds and (len(times) < 3 or sum(times) < 1e3 * _TIMED_SECONDS):
            self.wait()
            started = time.perf_counter()
            function()
            self.wait()
            times.append(1e3 * (time.perf_counter() - started))
        return statistics.median(times)

    def peak(self, function: Callable[[], Any]) -> int | None:
        """Most bytes of GPU memory beyond what was held before; none without a GPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        held = torch.cuda.memory_allocated(self.device)
        function()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) - held


def _make(case: Case) -> Any:
    """A model with random weights."""
    dtype = getattr(torch, case.dtype)
    config = LlamaConfig(**SHAPES[case.shape], max_position_embeddings=case.context + ROOM, dtype=dtype)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # made so at once: 8B in fp32 would take twice the memory for a moment
    with torch.device(case.device):
        if case.model == "teacher":
            made: Any = LlamaForCausalLM(config)
        else:
            attention = _attention_of(case.model, config.num_hidden_layers)
            made = TrenchcoatLlamaForCausalLM(student_config(config, attention))
    torch.set_default_dtype(torch.float32)
    return made.eval()


def _teachers_step(made: Any, prompt: Any, case: Case, mode: dict[str, Any]) -> tuple[Callable[[], Any], int]:
    """One more token by the static cache, compiled; and the bytes of that cache."""
    cache = StaticCache(config=made.config, max_cache_len=case.context + ROOM)
    for held, layer in zip(prompt.layers, cache.layers, strict=True):
        layer.update(*(x.expand(case.batch, -1, -1, -1) for x in (held.keys, held.values)))
    compiled = torch.compile(made.forward, fullgraph=True, dynamic=False, **mode)
    position = torch.tensor([[case.context]], device=case.device)
    token = torch.full((case.batch, 1), 3, device=case.device)

    def step() -> Any:
        return compiled(token, past_key_values=cache, position_ids=position, logits_to_keep=1)

    return step, sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))


def _students_step(made: Any, prompt: Any, case: Case, mode: dict[str, Any]) -> tuple[Callable[[], Any], int]:
    """One more token by the export's decoder, compiled; and the bytes of what it remembers."""
    prompt.batch_repeat_interleave(case.batch)
    decoder = FixedDecoder(made, prompt, max_new_tokens=ROOM)
    decoder.compile(**mode)
    token = torch.full((case.batch, 1), 3, device=case.device)
    held = [x for state in decoder.states for x in vars(state).values() if torch.is_tensor(x)]
    return (lambda: decoder.advance(token)), sum(x.nbytes for x in held)


@contextlib.contextmanager
def _turn(case: Case) -> Iterator[None]:
    """Have the device alone."""
    if case.turn is None:
        yield
        return
    with case.turn.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if case.device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.empty_cache()


@torch.no_grad()
def _times(case: Case) -> dict[str, Any]:
    device = torch.device(case.device)
    clock = _Clock(device)
    mode = {"mode": "reduce-overhead"} if device.type == "cuda" else {}
    with _turn(case):
        made = _make(case)
        ids = torch.randint(3, SHAPES[case.shape]["vocab_size"], (case.batch, case.context), device=device)

        def prefill() -> Any:
            return made(ids, use_cache=True, logits_to_keep=1)

        found: dict[str, Any] = {}
        if case.rounds:
            found["prefill_peak_bytes"] = clock.peak(prefill)
            found["prefill_ms"] = clock.median(prefill, case.rounds)
        if not case.steps:
            return found
        # All prompts of a batch are one, as a step's time depends on none.
        prompt = made(ids[:1], use_cache=True, logits_to_keep=1).past_key_values
        make_step = _teachers_step if case.model == "teacher" else _students_step
        step, found["state_bytes"] = make_step(made, prompt, case, mode)
        del prompt
    step()  # compiled while others have their turn
    with _turn(case):
        for _ in range(3):
            step()
        found["step_ms"] = clock.median(step, case.steps)
    weights = sum(p.nbytes for p in made.parameters()) - made.get_input_embeddings().weight.nbytes
    seconds = found["step_ms"] / 1e3
    found["tokens_per_second"] = case.batch / seconds
    # Every weight but the embedding's is read once a step, and the state once; little is written back.
    found["bytes_moved_per_step"] = weights + found["state_bytes"]
    found["bytes_moved_per_second"] = found["bytes_moved_per_step"] / seconds
    return found


def measure(case: Case) -> dict[str, Any]:
    """Return what was measured, and on what; or that it does not fit."""
    told: dict[str, Any] = {
        "model": case.model, "shape": case.shape, "batch": case.batch, "context": case.context,
        "dtype": case.dtype,
    }  # fmt: skip
    try:
        told |= _times(case)
    except torch.OutOfMemoryError as error:
        told["does_not_fit"] = str(error).splitlines()[0]
    is_gpu = torch.device(case.device).type == "cuda"
    told["device"] = torch.cuda.get_device_name() if is_gpu else f"{platform.machine()} CPU"
    return told | {"torch": torch.__version__, "transformers": transformers.__version__}
