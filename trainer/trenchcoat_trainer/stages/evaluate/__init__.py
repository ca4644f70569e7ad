"""The evaluate stage: perplexity on held-out text of the teacher and of the student after every stage.

One code measures all of them, Cria by Cria: one Cria's weights are in memory at a time, and the hidden states
of all held-out sequences in memory or in files, so that one GPU suffices for a model of any size.
Leaves ``report.json``.
"""

import json
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from trenchcoat_api.artifacts import Facts, Perplexity

from trenchcoat_trainer.attention import linear_share
from trenchcoat_trainer.data import TokenData
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.shards import load_rest_weights
from trenchcoat_trainer.stages.context import StageContext
from trenchcoat_trainer.stages.evaluate.states import HiddenStates
from trenchcoat_trainer.stages.evaluate.variants import PARTS, STAGES, cria_of_each
from trenchcoat_trainer.stages.ranks import choose_device
from trenchcoat_trainer.stages.student import load_student_config, stitch_adapters

REPORT = "report.json"
LOGITS = 2**27
"""Logits computed at a time: 512 MiB in fp32."""


@torch.no_grad()
def run(context: StageContext) -> None:
    """Measure and write the artifact.

    Raises:
        BadInputError: there is no held-out text.
    """
    data = TokenData(context, "held_out")
    if data.sequences == 0:
        raise BadInputError(
            "no held-out sequence to measure perplexity on: raise spec.data.heldOutPercent or "
            "spec.data.heldOutTokens, give more text, or set spec.evaluate.enabled to false"
        )
    config, device = load_student_config(context), choose_device(context.rank)
    size = context.spec.evaluate.batch_size
    rest = load_rest_weights(context)
    variants = (*STAGES, *PARTS)
    shape = (data.sequences, context.spec.data.sequence_length, config.hidden_size)
    states = {variant.name: HiddenStates(shape, config.dtype) for variant in variants}
    try:
        for state in states.values():
            for batch, tokens in zip(state.batches(size), token_batches(data, size), strict=True):
                batch.copy_(F.embedding(tokens, rest["model.embed_tokens.weight"]))

        shares: dict[str, float] = {}
        stitch = stitch_adapters(context)
        total, done = len(context.crias) * len(variants), 0
        for cria in context.crias:
            for variant, model in cria_of_each(context, config, cria, stitch, device):
                context.stop.check()
                if variant.name == "stitched":
                    first = next(states[variant.name].batches(size)).to(device)
                    shares |= {str(layer): share for layer, share in linear_shares(model, first).items()}
                for batch in states[variant.name].batches(size):
                    batch.copy_(model(batch.to(device)))
                done += 1
                context.progress.update(
                    "evaluate", done, total, fraction=done / total, tokens=shape[0] * shape[1]
                )

        embeddings = rest["model.embed_tokens.weight"]
        head = {
            "model.norm.weight": rest["model.norm.weight"].to(device),
            "lm_head.weight": rest.get("lm_head.weight", embeddings).to(device),  # absent when tied
        }
        perplexities = {name: perplexity(state, data, head, config, size) for name, state in states.items()}
    finally:
        for state in states.values():
            state.close()

    report = {
        "sequences": shape[0],
        "tokensPerSequence": shape[1],
        "perplexities": {variant.name: perplexities[variant.name] for variant in STAGES},
        "parts": {variant.name: perplexities[variant.name] for variant in PARTS},
        "linearShareByLayer": shares,
    }
    context.writer.write(REPORT, json.dumps(report, indent=1).encode())
    rows = [
        Perplexity(name=variant.name, perplexity=f"{perplexities[variant.name]:.6g}") for variant in STAGES
    ]
    context.writer.finish(Facts(perplexities=rows))


def token_batches(data: TokenData, size: int) -> Iterator[torch.Tensor]:
    """Yield the held-out sequences in their stored order, int64 [batch, tokens]."""
    return data.batches(epoch=0, batch_size=size, shuffle=False)


def perplexity(
    states: HiddenStates,
    data: TokenData,
    head: dict[str, torch.Tensor],
    config: TrenchcoatLlamaConfig,
    size: int,
) -> float:
    """Return exp of the mean negative log-likelihood of a token, every sequence's first left out.

    Args:
        states: the residual stream after the last layer.
        data: the same sequences.
        head: ``model.norm.weight`` and ``lm_head.weight``, on the device to compute on.
        config: the model's configuration.
        size: sequences per batch.
    """
    weight = head["lm_head.weight"]
    rows = max(1, LOGITS // weight.shape[0])
    total, count = 0.0, 0
    for hidden_BTE, tokens_BT in zip(states.batches(size), token_batches(data, size), strict=True):
        normed_BTE = rms_norm(hidden_BTE.to(weight.device), head["model.norm.weight"], config.rms_norm_eps)
        targets = tokens_BT[:, 1:].flatten().to(weight.device)
        parts = normed_BTE[:, :-1].flatten(0, 1).split(rows)
        for part, target in zip(parts, targets.split(rows), strict=True):
            total += F.cross_entropy((part @ weight.T).float(), target, reduction="sum").item()
        count += targets.numel()
    return math.exp(total / count)


def rms_norm(hidden_BTE: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Normalise as Llama does: the mean square in fp32, the result in the states' dtype."""
    x = hidden_BTE.float()
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)).to(hidden_BTE.dtype)


def linear_shares(cria: CriaModel, hidden_BTE: torch.Tensor) -> dict[int, float]:
    """Return for each hybrid layer the share of attention that lies below the window.

    The mean over heads and the positions that have something below their window (0 if there are none).
    """
    shares = {}
    rope = cria.rope(hidden_BTE)
    for name, layer in cria.layers.items():
        attention = layer.self_attn
        if not attention.softmax:
            q, k, _ = attention.project(layer.input_layernorm(hidden_BTE), rope)
            maps = (attention.w_q, attention.w_k, attention.window_factor)
            share_BHT = linear_share(q, k, *maps, window_size=cria.config.window)
            below = share_BHT[:, :, 2 * cria.config.window :]
            shares[int(name)] = below.mean().item() if below.numel() else 0.0
        hidden_BTE = layer(hidden_BTE, position_embeddings=rope)
    return shares
