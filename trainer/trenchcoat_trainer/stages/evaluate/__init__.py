"""The evaluate stage: perplexity on held-out text of the teacher and of the student after every stage.

One code measures all of them, Cria by Cria: one Cria's weights are in memory at a time, and the hidden states
of all held-out sequences in memory or in files, so that one GPU suffices for a model of any size.
Leaves ``report.json``.
"""

import json
import logging
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from trenchcoat_api.artifacts import Facts, Perplexity

from trenchcoat_trainer.checkpoints.shards import load_rest_weights
from trenchcoat_trainer.data import TokenData
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.models.artifacts import load_student_config, stitch_adapters
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.devices import choose_device
from trenchcoat_trainer.stages.evaluate.saved import SavedStates
from trenchcoat_trainer.stages.evaluate.states import HiddenStates
from trenchcoat_trainer.stages.evaluate.variants import STAGES, cria_of_each, parts_of

logger = logging.getLogger(__name__)

REPORT = "report.json"
LOGITS = 2**27
"""Logits computed at a time: 512 MiB in fp32."""


@torch.no_grad()
def run(context: StageContext) -> None:
    """Measure and write the artifact.

    Raises:
        BadInputError: there is no held-out text.
        PreemptedError: a stop was requested; what was saved stays, and the next start goes on.
    """
    data = TokenData(context, "held_out")
    if data.sequences == 0:
        raise BadInputError(
            "no held-out sequence to measure perplexity on: raise spec.data.heldOutPercent or "
            "spec.data.heldOutTokens, give more text, or set spec.evaluate.enabled to false"
        )
    config, device = load_student_config(context), choose_device(context)
    parts = parts_of(config)
    size = context.spec.evaluate.batch_size
    rest = load_rest_weights(context)
    shape = (data.sequences, context.spec.data.sequence_length, config.hidden_size)
    states = {variant.name: HiddenStates(shape, config.dtype) for variant in (*STAGES, *parts)}
    try:
        with SavedStates(context.checkpoint, size) as saved:
            shares = run_crias(context, data, states, saved, rest["model.embed_tokens.weight"])
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
        "parts": {variant.name: perplexities[variant.name] for variant in parts},
        "linearShareByLayer": shares,
    }
    context.writer.write(REPORT, json.dumps(report, indent=1).encode())
    rows = [
        Perplexity(name=variant.name, perplexity=f"{perplexities[variant.name]:.6g}") for variant in STAGES
    ]
    context.writer.finish(Facts(perplexities=rows))


def run_crias(
    context: StageContext,
    data: TokenData,
    states: dict[str, HiddenStates],
    saved: SavedStates,
    embeddings: torch.Tensor,
) -> dict[str, float]:
    """Carry the hidden states of every variant through all Crias, from where the last attempt stopped.

    Args:
        context: the stage's context.
        data: the held-out sequences.
        states: by the variant's name; filled here.
        saved: what an earlier attempt saved, and where this one saves.
        embeddings: [vocabulary, hidden size], on the CPU.

    Returns:
        The linear part's share of attention by layer, of the stitched student on the first batch.

    Raises:
        PreemptedError: a stop was requested.
    """
    config, device = load_student_config(context), choose_device(context)
    size = context.spec.evaluate.batch_size
    shares: dict[str, float] = {}
    passed: dict[str, list[int]] = {}  # Crias that each batch has passed
    for name, state in states.items():
        passed[name] = []
        for index, (batch, tokens) in enumerate(
            zip(state.batches(size), token_batches(data, size), strict=True)
        ):
            found = saved.load(name, index)
            batch.copy_(found[0] if found else F.embedding(tokens, embeddings))
            passed[name].append(found[1]["passed"] if found else 0)
            shares |= found[1]["shares"] if found else {}

    stitch = stitch_adapters(context)
    done = sum(map(sum, passed.values()))
    total = len(context.crias) * sum(map(len, passed.values()))
    if done:
        logger.info("going on: %d of %d batches have passed their Crias", done, total)
    for cria in context.crias[min(map(min, passed.values())) :]:
        for variant, model in cria_of_each(context, config, cria, stitch, device):
            for index, batch in enumerate(states[variant.name].batches(size)):
                if passed[variant.name][index] > cria.index:
                    continue
                context.stop.check()
                hidden = batch.to(device)
                own = {}
                if variant.name == "stitched" and index == 0:
                    shares |= {str(layer): share for layer, share in linear_shares(model, hidden).items()}
                    own = shares  # saved with the batch that they are measured on
                batch.copy_(model(hidden))
                passed[variant.name][index] += 1
                saved.offer(
                    variant.name, index, batch, {"passed": passed[variant.name][index], "shares": dict(own)}
                )
                done += 1
                context.progress.update(
                    "evaluate", done, total, fraction=done / total, tokens=batch[..., 0].numel()
                )
    return shares


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
    """Return for each student layer the share of attention outside its window, where forms have one."""
    shares = {}
    rope = cria.rope(hidden_BTE)
    for name, layer in cria.layers.items():
        attention = layer.self_attn
        if not attention.softmax:
            heads = attention.project(layer.input_layernorm(hidden_BTE), rope)
            share = attention.student.linear_share(heads, attention.student_parameters())
            if share is not None:
                shares[int(name)] = share
        hidden_BTE = layer(hidden_BTE, position_embeddings=rope)
    return shares
