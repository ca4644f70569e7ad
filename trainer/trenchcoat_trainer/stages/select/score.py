"""How far a teacher's layer moves when its attention is cut to a window.

Shape letters: B batch, H query heads, K key/value heads, G query heads a group, T tokens, A answers, D head
dimension, E hidden size.
"""

from typing import NamedTuple

import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from trenchcoat_trainer.checkpoints.teacher_layers import TeacherLayers


class _Heads(NamedTuple):
    """Queries at the answers alone, scaled, keys and values, fp32; `first` is the first answer's position."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    first: int


class Sight(NamedTuple):
    """What a cut layer sees: the last tokens, a query's own included, and the first of the sequence."""

    window: int
    first_tokens: int


def layer_score(layers: TeacherLayers, hidden: torch.Tensor, answers: slice, sight: Sight) -> torch.Tensor:
    """Return the mean over answers of |W_o (y_full - y_cut)| / |x + W_o y_full|, a scalar in fp32.

    y_full is the layer's softmax attention, y_cut the same over what `sight` lets it see.

    Args:
        layers: the one layer.
        hidden: x, the residual stream that enters it, [B, T, E].
        answers: positions to measure at.
        sight: of the cut layer.
    """
    layer = layers.layers[0]
    shares = []
    for x_1TE in hidden.split(1):
        heads = _project(layers, layer, x_1TE, answers)
        full = _attend(heads, _causal(heads))
        cut = _attend(heads, _causal(heads) & _seen(heads, sight))
        out = layer.self_attn.o_proj
        moved = torch.nn.functional.linear((full - cut).to(x_1TE.dtype), out.weight).float()
        after = x_1TE[:, answers].float() + out(full.to(x_1TE.dtype)).float()
        shares.append(moved.norm(dim=-1) / after.norm(dim=-1))
    return torch.cat(shares).mean()


def _project(layers: TeacherLayers, layer: LlamaDecoderLayer, x_BTE: torch.Tensor, answers: slice) -> _Heads:
    attention = layer.self_attn
    normed = layer.input_layernorm(x_BTE)
    q, k, v = (
        projection(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    positions = torch.arange(x_BTE.shape[1], device=x_BTE.device).unsqueeze(0)
    q, k = apply_rotary_pos_emb(q, k, *layers.rotary(x_BTE, position_ids=positions))
    return _Heads(q[:, :, answers].float() * attention.scaling, k.float(), v.float(), answers.start)


def _positions(heads: _Heads) -> tuple[torch.Tensor, torch.Tensor]:
    """Of answers, [A, 1], and of keys, [T]."""
    keys = torch.arange(heads.k.shape[2], device=heads.k.device)
    answers = heads.first + torch.arange(heads.q.shape[2], device=heads.q.device)
    return answers[:, None], keys


def _causal(heads: _Heads) -> torch.Tensor:
    answers, keys = _positions(heads)
    return keys <= answers


def _seen(heads: _Heads, sight: Sight) -> torch.Tensor:
    answers, keys = _positions(heads)
    return (keys > answers - sight.window) | (keys < sight.first_tokens)


def _attend(heads: _Heads, mask_AT: torch.Tensor) -> torch.Tensor:
    """Return softmax attention over the keys of a mask, [B, A, H * D]."""
    groups = heads.q.shape[1] // heads.k.shape[1]
    q_BKGAD = heads.q.unflatten(1, (-1, groups))
    scores = q_BKGAD @ heads.k.unsqueeze(2).transpose(-1, -2)
    weights = scores.masked_fill(~mask_AT, float("-inf")).softmax(-1)
    return (weights @ heads.v.unsqueeze(2)).flatten(1, 2).transpose(1, 2).flatten(2)
