"""How far a teacher's layer moves when its attention is cut to a window.

Shape letters: B batch, T tokens, A answers, E hidden size.
"""

from typing import NamedTuple

import torch

from trenchcoat_trainer.checkpoints.teacher_layers import TeacherLayers
from trenchcoat_trainer.layers.llama import masked_attention, merge_heads, module_heads


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
    out = layer.self_attn.o_proj
    position_T = torch.arange(hidden.shape[1], device=hidden.device)
    rope = layers.rope(hidden)
    answer_A1 = position_T[answers, None]
    causal_AT = position_T <= answer_A1
    seen_AT = (position_T > answer_A1 - sight.window) | (position_T < sight.first_tokens)
    shares = []
    for x_1TE in hidden.split(1):
        q, k, v = module_heads(layer.self_attn, layer.input_layernorm(x_1TE), rope)
        heads = (q[:, :, answers].float(), k.float(), v.float())
        full, cut = (merge_heads(masked_attention(*heads, mask)) for mask in (causal_AT, causal_AT & seen_AT))
        moved = torch.nn.functional.linear((full - cut).to(x_1TE.dtype), out.weight).float()
        after = x_1TE[:, answers].float() + out(full.to(x_1TE.dtype)).float()
        shares.append(moved.norm(dim=-1) / after.norm(dim=-1))
    return torch.cat(shares).mean()
