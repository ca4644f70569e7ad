#!/usr/bin/env python3
"""What prefill and a decode step cost, in time and memory: the student beside its teacher.

    python benchmarks/decode --shapes smollm2 llama-1b llama-8b --batch 1 16 128 --context 1024 8192 32768
    python benchmarks/decode --shapes tiny --context 256 --steps 16      # without a GPU

The teacher is a Llama with SDPA and its static cache, its step compiled as one graph; the student is what an
export holds, its step by FixedDecoder, compiled likewise; both have random weights. Each case runs in a
process of its own. Prints one JSON object a line, with what it ran on; what does not fit says so.
"""

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
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
ROOM = 512
"""Tokens that may follow a prompt; more than are timed."""
WINDOW = Attention(form=Form.WINDOW, window=256, first_tokens=4)


def attention_of(model: str, layers: int) -> Attention:
    """The student's attention; `standard` lets every fourth layer see everything, as in that preset."""
    lolcats = Attention(form=Form.LOLCATS)
    return {
        "window": WINDOW,
        "standard": WINDOW.model_copy(update={"keep_softmax_layers": list(range(0, layers, 4))}),
        "lolcats": lolcats,
        "lolcats-shared": lolcats.model_copy(update={"key_maps": KeyMaps.PER_KEY_VALUE_HEAD}),
    }[model]


MODELS = ("teacher", "window", "standard", "lolcats", "lolcats-shared")


class Clock:
    """Times of functions on a device, in milliseconds."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def median(self, function: Callable[[], Any], rounds: int, warm_up: int) -> float:
        times = []
        for number in range(warm_up + rounds):
            self.wait()
            started = time.perf_counter()
            function()
            self.wait()
            if number >= warm_up:
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


def make(model: str, shape: str, context: int, dtype: torch.dtype, device: torch.device) -> Any:
    """A model with random weights."""
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=context + ROOM, dtype=dtype)
    torch.manual_seed(0)
    with torch.device(device):
        if model == "teacher":
            made: Any = LlamaForCausalLM(config)
        else:
            attention = attention_of(model, config.num_hidden_layers)
            made = TrenchcoatLlamaForCausalLM(student_config(config, attention))
    parameters = {name for name, p in made.named_parameters() if p.dtype == torch.float32 and ".w_" in name}
    made = made.to(dtype).eval()
    for name, parameter in made.named_parameters():
        if name in parameters or name.endswith("window_factor"):
            parameter.data = parameter.data.float()  # as an export keeps them
    return made


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times and bytes of one case."""
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    (model,), (shape,), (batch,), (context,) = (
        arguments.models, arguments.shapes, arguments.batch, arguments.context,
    )  # fmt: skip
    made, clock = make(model, shape, context, dtype, device), Clock(device)
    ids = torch.randint(3, SHAPES[shape]["vocab_size"], (batch, context), device=device)
    mode = {"mode": "reduce-overhead"} if device.type == "cuda" else {}
    step: Callable[[], Any]
    if model == "teacher":
        cache = StaticCache(config=made.config, max_cache_len=context + ROOM)

        def prefill() -> Any:
            cache.reset()
            return made(ids, past_key_values=cache, logits_to_keep=1)

        compiled = torch.compile(made.forward, fullgraph=True, dynamic=False, **mode)
        position = torch.tensor([[context]], device=device)

        def step() -> Any:
            return compiled(ids[:, :1], past_key_values=cache, position_ids=position, logits_to_keep=1)
    else:

        def prefill() -> Any:
            return made(ids, use_cache=True, logits_to_keep=1)

    with torch.no_grad():
        found: dict[str, Any] = {
            "prefill_ms": clock.median(prefill, arguments.rounds, 1),
            "prefill_peak_bytes": clock.peak(prefill),
        }
        outputs = prefill()
        if model == "teacher":
            found["state_bytes"] = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
        else:
            decoder = FixedDecoder(made, outputs.past_key_values, max_new_tokens=ROOM)
            decoder.compile(**mode)
            held = [x for state in decoder.states for x in vars(state).values() if torch.is_tensor(x)]
            found["state_bytes"] = sum(x.nbytes for x in held)

            def step() -> Any:
                return decoder.advance(ids[:, :1])

        found["step_ms"] = clock.median(step, arguments.steps, 4)
    weights = sum(p.nbytes for p in made.parameters()) - made.get_input_embeddings().weight.nbytes
    seconds = found["step_ms"] / 1e3
    found["tokens_per_second"] = batch / seconds
    # Every weight but the embedding's is read once a step, and the state once; little is written back.
    found["bytes_moved_per_step"] = weights + found["state_bytes"]
    found["bytes_moved_per_second"] = found["bytes_moved_per_step"] / seconds
    return found


def case(arguments: argparse.Namespace) -> None:
    """Measure one case and print it."""
    told: dict[str, Any] = {
        "model": arguments.models[0], "shape": arguments.shapes[0], "batch": arguments.batch[0],
        "context": arguments.context[0], "dtype": arguments.dtype,
    }  # fmt: skip
    try:
        told |= measure(arguments)
    except torch.OutOfMemoryError as error:
        told["does_not_fit"] = str(error).splitlines()[0]
    is_gpu = torch.device(arguments.device).type == "cuda"
    told["device"] = torch.cuda.get_device_name() if is_gpu else f"{platform.machine()} CPU"
    told |= {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(told), flush=True)


def main() -> None:
    """Parse arguments and run every case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["smollm2"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--context", nargs="+", type=int, default=[1024], help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=64, help="timed")
    parser.add_argument("--rounds", type=int, default=5, help="of prefill, timed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--here", action="store_true", help="one case, in this process")
    arguments = parser.parse_args()
    if arguments.steps + 4 > ROOM:
        parser.error(f"--steps may be {ROOM - 4} at most")
    if arguments.here:
        case(arguments)
        return
    kept = ["--steps", arguments.steps, "--rounds", arguments.rounds, "--device", arguments.device,
            "--dtype", arguments.dtype]  # fmt: skip
    for shape, context, batch, model in itertools.product(
        arguments.shapes, arguments.context, arguments.batch, arguments.models
    ):
        one = ["--shapes", shape, "--context", context, "--batch", batch, "--models", model]
        subprocess.run([sys.executable, __file__, "--here", *map(str, [*one, *kept])], check=True)


if __name__ == "__main__":
    main()
