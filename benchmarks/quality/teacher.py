"""The teacher of benchmarks/quality: a Llama trained in minutes on one GPU, saved as Hugging Face does."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from trenchcoat_trainer.sources.formats import SUFFIXES
from trenchcoat_trainer.stages.tokenize.reading import is_held_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Shape and training of the teacher."""

    layers: int = 12
    hidden_size: int = 768
    heads: int = 12
    kv_heads: int = 12
    intermediate_size: int = 2048
    sequence_length: int = 1024
    tokens: int = 27_000_000
    batch_size: int = 32
    optimizer: str = "muon"
    """muon for the matrices, with AdamW for the rest; or adamw for all, which learns more slowly."""
    muon_learning_rate: float = 0.02
    adam_learning_rate: float = 3e-3
    adamw_matrix_learning_rate: float = 1e-3
    seed: int = 0
    seconds: float = 150.0
    """Training is shortened when it would take longer; the tokens that it saw are reported."""


def read_tokens(
    corpus: Path, tokenizer_folder: Path, held_out_percent: int, limit: int | None
) -> torch.Tensor:
    """Return the token ids of all documents that are not held out, joined: int64 [tokens].

    `limit` documents are read at most; all where it is None.
    """
    import json

    import zstandard
    from transformers import AutoTokenizer

    assert corpus.name.endswith(SUFFIXES)
    lines = zstandard.ZstdDecompressor().stream_reader(corpus.open("rb")).read().decode().splitlines()
    texts = [json.loads(line)["text"] for line in itertools.islice(lines, limit) if line]
    texts = [text for text in texts if not is_held_out(text, held_out_percent)]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts)
    return torch.tensor([token for item in encoded for token in item.ids])


def train(recipe: Recipe, tokens: torch.Tensor, vocabulary: int, tokenizer_folder: Path, out: Path) -> dict:
    """Train, save the checkpoint with its tokenizer in `out`, and return what is worth reporting."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden_size // recipe.heads,
        intermediate_size=recipe.intermediate_size,
        max_position_embeddings=recipe.sequence_length,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).to(device)
    began = time.monotonic()
    length = recipe.sequence_length
    windows = tokens[: len(tokens) // length * length].view(-1, length).to(device)
    steps = max(1, recipe.tokens // (recipe.batch_size * length))
    done, loss = _train(recipe, model, windows, steps)
    seconds = time.monotonic() - began
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(out)
    return {
        "layers": recipe.layers,
        "hiddenSize": recipe.hidden_size,
        "heads": recipe.heads,
        "kvHeads": recipe.kv_heads,
        "intermediateSize": recipe.intermediate_size,
        "vocabulary": vocabulary,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sequenceLength": length,
        "corpusTokens": len(tokens),
        "trainedTokens": done * recipe.batch_size * length,
        "steps": done,
        "optimizer": recipe.optimizer,
        "trainingLoss": round(loss, 4),
        "seconds": round(seconds, 1),
    }


def _train(recipe: Recipe, model: nn.Module, windows: torch.Tensor, steps: int) -> tuple[int, float]:
    """Train on `windows` in random order; returns the steps made and the mean loss of the last 20."""
    device = windows.device
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    if recipe.optimizer == "muon":
        first = torch.optim.Muon(matrices, lr=recipe.muon_learning_rate, weight_decay=0.01)
        rate = recipe.adam_learning_rate
    else:
        rate = recipe.adamw_matrix_learning_rate
        first = torch.optim.AdamW(matrices, lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    second = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    optimizers = [first, second]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    loss_of = _compiled_loss(model, device)
    generator = torch.Generator().manual_seed(recipe.seed)
    epochs = -(-steps * recipe.batch_size // len(windows))
    order = torch.cat([torch.randperm(len(windows), generator=generator) for _ in range(epochs)]).to(device)
    losses: list[torch.Tensor] = []
    step, timed = 0, 0.0
    while step < steps:
        warm, cool = min(1.0, (step + 1) / 50), min(1.0, (steps - step) / (0.5 * steps))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * warm * cool
        batch = windows[order[step * recipe.batch_size : (step + 1) * recipe.batch_size]]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        step += 1
        if step == 10:
            loss.item()  # compiled by now
            timed = time.monotonic()
        if step == 40:
            print(f"teacher: step {step}, loss {loss.item():.3f}", flush=True)
            each = (time.monotonic() - timed) / 30
            affordable = int(recipe.seconds / each)
            print(f"teacher: {each * 1000:.0f} ms a step, time for {affordable} of {steps}", flush=True)
            steps = max(40, min(steps, affordable))
        elif step % 100 == 0:
            print(f"teacher: step {step} of {steps}, loss {loss.item():.3f}", flush=True)
    return step, float(torch.stack(losses[-20:]).mean())


def _compiled_loss(model: nn.Module, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the language-modelling loss as a function of token ids, over the parameters of `model`.

    The layer is a pure function of its weights, so that all layers share one compilation.
    """
    config = model.config
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    epsilon, hidden_size = config.rms_norm_eps, config.hidden_size

    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    def layer(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        norm_1, w_q, w_k, w_v, w_o, norm_2, w_gate, w_up, w_down = weights
        batch, length, _ = x.shape
        h = F.rms_norm(x.float(), (hidden_size,), norm_1, epsilon)
        q = F.linear(h, w_q).view(batch, length, heads, head_dim).transpose(1, 2)
        k = F.linear(h, w_k).view(batch, length, kv_heads, head_dim).transpose(1, 2)
        v = F.linear(h, w_v).view(batch, length, kv_heads, head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
        x = x + F.linear(y.transpose(1, 2).flatten(2), w_o)
        h = F.rms_norm(x.float(), (hidden_size,), norm_2, epsilon)
        return x + F.linear(F.silu(F.linear(h, w_gate)) * F.linear(h, w_up), w_down)

    def head(x: torch.Tensor, norm: torch.Tensor, embedding: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        h = F.rms_norm(x.float(), (hidden_size,), norm, epsilon)[:, :-1]
        logits = F.linear(h, embedding).float()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    if device.type == "cuda":
        torch._dynamo.config.suppress_errors = True  # slower, then, but no less right
        layer, head = torch.compile(layer, dynamic=False), torch.compile(head, dynamic=False)
    names = (
        "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    )  # fmt: skip
    weights = [[block.get_submodule(name).weight for name in names] for block in model.model.layers]
    embedding, norm = model.model.embed_tokens.weight, model.model.norm.weight

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(ids.shape[1], device=device).unsqueeze(0)
        with torch.no_grad():
            cos, sin = (part.unsqueeze(1) for part in model.model.rotary_emb(embedding, positions))
        x = F.embedding(ids, embedding)
        for own in weights:
            x = layer(x, cos, sin, *own)
        return head(x, norm, embedding, ids)

    return loss_of
