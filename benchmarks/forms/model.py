"""SmolLM2 in plain torch with one of several attentions in each layer: to try a student form in a minute.

Shape letters: B batch, T tokens, E hidden size, H query heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16
FEATURES = 64
BLOCK = 64


class Sight(NamedTuple):
    """What a layer's softmax sees: the last `window` tokens, its own included, and the `first` ones."""

    window: int
    first: int = 4


WHOLE = None
"""Sight of a layer that keeps softmax attention over everything."""


@dataclass
class Teacher:
    """Frozen weights, and the sizes that go with them."""

    weights: dict[str, torch.Tensor]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    eps: float
    theta: float
    masks: dict[tuple[int, Sight], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Teacher:
        """Read what prepare.py left."""
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        return cls(
            weights={name.removeprefix("model."): w.to(DEVICE, DTYPE) for name, w in weights.items()},
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            hidden=config["hidden_size"],
            eps=config["rms_norm_eps"],
            theta=config["rope_parameters"]["rope_theta"],
        )

    def angles(self, tokens: int, start: torch.Tensor | int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines of `tokens` positions from `start` on, [T, D / 2]."""
        steps = torch.arange(0, self.head_dim, 2, device=DEVICE).float() / self.head_dim
        positions = torch.arange(tokens, device=DEVICE).float() + start
        angles = positions[:, None] * (1.0 / self.theta**steps)
        return angles.cos(), angles.sin()

    def mask(self, tokens: int, sight: Sight) -> torch.Tensor:
        """Return [T, T], true where query i may see key j."""
        if (tokens, sight) not in self.masks:
            i, j = torch.arange(tokens, device=DEVICE)[:, None], torch.arange(tokens, device=DEVICE)[None]
            self.masks[tokens, sight] = (j <= i) & ((i - j < sight.window) | (j < sight.first))
        return self.masks[tokens, sight]

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Apply RMSNorm."""
        x32 = x.float()
        return self.weights[name] * (
            x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        ).to(x.dtype)  # fmt: skip


def rotate(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Apply RoPE to [B, H, T, D]."""
    (cos, sin), (low, high) = angles, x.float().chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)


class Student(nn.Module):
    """A student of `teacher`: the sight of each layer, adapters, and a memory for what is out of sight.

    Attributes:
        memory: "" for none; "linear": linear attention with learned feature maps (Hedgehog's) on queries and
            keys before RoPE, over what has left the window; "delta": a gated delta rule over everything. A
            gate that depends on the token mixes it with the softmax.
        target: a student whose logits are learned in place of the text.
    """

    def __init__(
        self, teacher: Teacher, sights: list[Sight | None], *, rank: int = 8, memory: str = "", seed: int = 0
    ) -> None:
        super().__init__()
        self.teacher, self.sights, self.memory, self.seed = teacher, sights, memory, seed
        self.labels: torch.Tensor | None = None
        self.target: Student | None = None
        self.params = nn.ParameterDict()
        source = torch.Generator().manual_seed(seed)
        for layer, sight in enumerate(sights):
            if rank:
                self._add_adapters(layer, rank, source)
            if memory and sight is not None:
                self._add_memory(layer, source)

    def _add_adapters(self, layer: int, rank: int, source: torch.Generator) -> None:
        for name in ("q", "k", "v", "o"):
            out, inner = self.teacher.weights[f"layers.{layer}.self_attn.{name}_proj.weight"].shape
            a = (torch.rand(rank, inner, generator=source) * 2 - 1) / math.sqrt(inner)
            self.params[f"{layer}_{name}_a"] = nn.Parameter(a.to(DEVICE))
            self.params[f"{layer}_{name}_b"] = nn.Parameter(torch.zeros(out, rank, device=DEVICE))

    def _add_memory(self, layer: int, source: torch.Generator) -> None:
        t = self.teacher
        heads, kv, dim = t.heads, t.kv_heads, t.head_dim
        new = {"gate_w": torch.zeros(heads, t.hidden), "gate_b": torch.full((heads,), -3.0)}
        if self.memory == "linear":
            bound = (6 / (dim * FEATURES)) ** 0.5
            new["w_q"] = (torch.rand(heads, dim, FEATURES, generator=source) * 2 - 1) * bound
            new["w_k"] = (torch.rand(kv, dim, FEATURES, generator=source) * 2 - 1) * bound
        else:
            new["w_q"], new["w_k"] = (torch.eye(dim).repeat(n, 1, 1) for n in (heads, kv))
            new |= {"write_w": torch.zeros(kv, t.hidden), "write_b": torch.zeros(kv)}
            new |= {"decay_w": torch.zeros(kv, t.hidden), "decay_b": torch.full((kv,), -6.0)}
            new["scale"] = torch.ones(heads, dim)
        for name, value in new.items():
            self.params[f"{layer}_{name}"] = nn.Parameter(value.to(DEVICE))

    def project(self, layer: int, name: str, x: torch.Tensor) -> torch.Tensor:
        """Apply a projection with its adapter (alpha = 2 r)."""
        y = F.linear(x, self.teacher.weights[f"layers.{layer}.self_attn.{name}_proj.weight"])
        if f"{layer}_{name}_a" in self.params:
            a, b = (self.params[f"{layer}_{name}_{side}"].to(DTYPE) for side in "ab")
            y = y + F.linear(F.linear(x, a), b) * 2.0
        return y

    def attend(
        self, layer: int, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], *, whole: bool = False
    ) -> torch.Tensor:
        """Return the attention's output before o_proj, [B, T, H * D]; the teacher's own with `whole`."""
        t, (batch, tokens, _) = self.teacher, x.shape
        q, k, v = (
            self.project(layer, name, x).view(batch, tokens, -1, t.head_dim).transpose(1, 2) for name in "qkv"
        )
        group = t.heads // t.kv_heads
        keys, values = rotate(k, angles).repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        sight = WHOLE if whole else self.sights[layer]
        if sight is None:
            y = F.scaled_dot_product_attention(rotate(q, angles), keys, values, is_causal=True)
        else:
            mask = t.mask(tokens, sight)
            y = F.scaled_dot_product_attention(rotate(q, angles), keys, values, attn_mask=mask)
        if not whole and f"{layer}_gate_w" in self.params:
            gate = self._linear(layer, "gate", x).sigmoid().transpose(1, 2)[..., None]
            y = (y.float() * (1 - gate) + gate * self._remember(layer, x, q, k, v)).to(DTYPE)
        return y.transpose(1, 2).reshape(batch, tokens, -1)

    def _linear(self, layer: int, name: str, x: torch.Tensor) -> torch.Tensor:
        weight = self.params[f"{layer}_{name}_w"].to(DTYPE)
        return F.linear(x, weight).float() + self.params[f"{layer}_{name}_b"]

    def _remember(
        self, layer: int, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        w_q, w_k = self.params[f"{layer}_w_q"], self.params[f"{layer}_w_k"]
        if self.memory == "linear":
            sight = self.sights[layer]
            assert sight is not None
            return linear_memory(features(q, w_q), features(k, w_k), v.float(), -(-sight.window // BLOCK))
        group = self.teacher.heads // self.teacher.kv_heads
        write = self._linear(layer, "write", x).sigmoid().transpose(1, 2)
        decay = -F.softplus(self._linear(layer, "decay", x)).transpose(1, 2)
        keys, values, write, decay = (
            part.repeat_interleave(group, 1)
            for part in (F.normalize(k.float() @ w_k, dim=-1), v.float(), write, decay)
        )
        y = gated_delta_rule(F.normalize(q.float() @ w_q, dim=-1), keys, values, decay, write)
        return y * self.params[f"{layer}_scale"][:, None]

    def after(self, layer: int, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Add the attention and the MLP to the residual stream, [B, T, E]."""
        t, mlp = self.teacher, f"layers.{layer}.mlp"
        x = x + attended
        h = t.norm(x, f"layers.{layer}.post_attention_layernorm.weight")
        gate, up, down = (t.weights[f"{mlp}.{name}_proj.weight"] for name in ("gate", "up", "down"))
        return x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)

    def normed(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer's attention reads."""
        return self.teacher.norm(x, f"layers.{layer}.input_layernorm.weight")

    def hidden(self, ids: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return what the head reads, [B, T, E]."""
        x = self.teacher.weights["embed_tokens.weight"][ids]
        for layer in range(self.teacher.layers):
            y = self.attend(layer, self.normed(layer, x), angles)
            x = self.after(layer, x, self.project(layer, "o", y))
        return self.teacher.norm(x, "norm.weight")

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the head, tied to the embedding, in fp32 behind it."""
        return F.linear(hidden, self.teacher.weights["embed_tokens.weight"]).float()

    def language_loss(self, ids: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the mean negative log-likelihood of the labels, nats a token, or KL from `target`."""
        hidden = self.hidden(ids, angles)[:, :-1].flatten(0, 1)
        if self.target is not None:
            with torch.no_grad():
                told = self.target.logits(self.target.hidden(ids, angles)[:, :-1].flatten(0, 1)).log_softmax(
                    -1
                )
            log_probabilities = self.logits(hidden).log_softmax(-1)
            return F.kl_div(log_probabilities, told, reduction="batchmean", log_target=True)
        labels = ids if self.labels is None else self.labels
        return F.cross_entropy(self.logits(hidden), labels[:, 1:].flatten())

    def transfer_loss(self, ids: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the relative squared error of attention outputs, teacher forced, a mean over layers."""
        x, losses = self.teacher.weights["embed_tokens.weight"][ids], []
        for layer in range(self.teacher.layers):
            h = self.normed(layer, x)
            with torch.no_grad():
                target = self.attend(layer, h, angles, whole=True)
            if f"{layer}_gate_w" in self.params:
                error = (self.attend(layer, h, angles).float() - target.float()).square().sum(-1).mean()
                losses.append(error / target.float().square().sum(-1).mean())
            with torch.no_grad():
                out = self.teacher.weights[f"layers.{layer}.self_attn.o_proj.weight"]
                x = self.after(layer, x, F.linear(target, out))
        return torch.stack(losses).mean()


def features(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return [softmax(x w), softmax(-x w)], [B, H or K, T, 2 F], as Hedgehog does."""
    z = x.float() @ w
    return torch.cat([z.softmax(-1), (-z).softmax(-1)], -1)


def linear_memory(
    phi_q: torch.Tensor, phi_k: torch.Tensor, v: torch.Tensor, blocks_behind: int
) -> torch.Tensor:
    """Return normalised linear attention over all blocks but the last `blocks_behind`, [B, H, T, D]."""
    (batch, heads, tokens, _), kv = phi_q.shape, v.shape[1]
    count = -(-tokens // BLOCK)
    phi_q, phi_k, v = (F.pad(x, (0, 0, 0, count * BLOCK - tokens)) for x in (phi_q, phi_k, v))
    phi_q = phi_q.view(batch, kv, heads // kv, count, BLOCK, -1)
    phi_k, v = (x.view(batch, kv, count, BLOCK, -1) for x in (phi_k, v))
    memory, total = (phi_k.transpose(-1, -2) @ v).cumsum(2), phi_k.sum(3).cumsum(2)
    memory = F.pad(memory, (0, 0, 0, 0, blocks_behind, 0))[:, :, None, :count]
    total = F.pad(total, (0, 0, blocks_behind, 0))[:, :, None, :count, :, None]
    y = phi_q @ memory / (phi_q @ total).clamp_min(1e-6)
    return y.view(batch, heads, count * BLOCK, -1)[:, :, :tokens]


def gated_delta_rule(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, write: torch.Tensor
) -> torch.Tensor:
    """Return q S with S_t = a_t S_{t-1} (1 - b_t k_t k_t^T) + b_t k_t v_t^T, fp32, block by block.

    Args:
        q: queries, [B, H, T, D], as k and v.
        k: keys of length 1.
        v: values.
        log_decay: log a, [B, H, T].
        write: b, [B, H, T].
    """
    batch, heads, tokens, dim = q.shape
    count = -(-tokens // BLOCK)
    extra = count * BLOCK - tokens
    q, k, v = (F.pad(x, (0, 0, 0, extra)).view(batch, heads, count, BLOCK, -1) for x in (q, k, v))
    log_decay, write = (F.pad(x, (0, extra)).view(batch, heads, count, BLOCK) for x in (log_decay, write))
    log_decay, write = log_decay.cumsum(-1), write[..., None]
    lower = torch.ones(BLOCK, BLOCK, device=q.device).tril()
    decay = ((log_decay[..., :, None] - log_decay[..., None, :]) * lower).exp() * lower
    within = ((k * write) @ k.transpose(-1, -2) * decay).tril(-1)
    one = torch.eye(BLOCK, device=q.device)
    solved = torch.linalg.solve_triangular(
        one + within, one.expand_as(within), upper=False, unitriangular=True
    )
    values, read = solved @ (v * write), solved @ (k * write * log_decay.exp()[..., None])
    seen, q_in = q @ k.transpose(-1, -2) * decay, q * log_decay.exp()[..., None]
    last = log_decay[..., -1:]
    k_out, state, rows = k * (last - log_decay).exp()[..., None], q.new_zeros(batch, heads, dim, dim), []
    for n in range(count):
        new = values[:, :, n] - read[:, :, n] @ state
        rows.append(q_in[:, :, n] @ state + seen[:, :, n] @ new)
        state = state * last[:, :, n, :, None].exp() + k_out[:, :, n].transpose(-1, -2) @ new
    return torch.stack(rows, 2).view(batch, heads, count * BLOCK, dim)[:, :, :tokens]
