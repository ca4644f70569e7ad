"""select: choose the layers that are to be wide, by one pass of the teacher over copy sequences.

A layer carries recall as far as its output moves where a copied token is to be told, once its attention is
cut to the student's window: `score`. The teacher's layers are read one after the other, so that one GPU
suffices for a model of any size. It is minutes of work: a stage that is started again begins anew.
"""

import json
import logging
import math
from dataclasses import asdict

import torch
from torch.nn import functional
from trenchcoat_api.artifacts import Facts
from trenchcoat_api.layer_kinds import wide_count
from trenchcoat_api.selection import SEQUENCES, TOKENS, Selection, cut_first_tokens
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.checkpoints.finite import require_finite
from trenchcoat_trainer.checkpoints.shards import TORCH_DTYPES
from trenchcoat_trainer.checkpoints.teacher import EMBEDDING, Teacher, open_teacher
from trenchcoat_trainer.checkpoints.teacher_layers import TeacherLayers
from trenchcoat_trainer.data import TokenData
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.layers.teacher import open_layers
from trenchcoat_trainer.models.artifacts import SELECTION
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.devices import choose_device
from trenchcoat_trainer.seeds import generator
from trenchcoat_trainer.stages.select.copies import CopyLayout, copy_sequences
from trenchcoat_trainer.stages.select.score import Sight, layer_score

logger = logging.getLogger(__name__)

PHASE = "select"


@torch.no_grad()
def run(context: StageContext) -> None:
    """Score every layer, choose the wide ones and write the artifact.

    Raises:
        BadInputError: no copy lies outside the window, the checkpoint lacks a tensor, or weights or scores
            are not finite.
        PreemptedError: a stop was requested.
    """
    spec = context.spec
    sight = Sight(spec.attention.window, cut_first_tokens(spec.attention))
    layout = choose_layout(spec, sight)
    teacher = open_teacher(spec, context.store)
    scores = score_layers(context, teacher, layout, sight)
    layers = best(scores, spec)
    logger.info("wide layers: %s", ", ".join(map(str, layers)))
    selection = Selection(layers=layers, scores=[f"{score:.4g}" for score in scores])
    settings = {"sequences": SEQUENCES, "seed": spec.seed, **asdict(layout), **sight._asdict()}
    document = {**selection.model_dump(), "settings": settings}
    context.writer.write(SELECTION, json.dumps(document, indent=1).encode())
    context.writer.finish(Facts(selection=selection))


def choose_layout(spec: TrenchcoatSpec, sight: Sight) -> CopyLayout:
    """Return where copies stand in sequences of the text's length, or of as much as the scores need.

    Raises:
        BadInputError: no copy would lie outside what the cut layer sees.
    """
    length = min(spec.data.sequence_length, max(TOKENS, 2 * sight.window))
    layout = CopyLayout.fit(length, sight.window, sight.first_tokens)
    if not layout.distances:
        raise BadInputError(
            f"spec.data.sequenceLength is {spec.data.sequence_length}, too short for a copy outside of "
            f"spec.attention.window {sight.window} to choose wide layers by: raise it, lower the window, or "
            "set spec.attention.wide.layers in place of share"
        )
    return layout


def score_layers(context: StageContext, teacher: Teacher, layout: CopyLayout, sight: Sight) -> list[float]:
    """Return the score of each layer, in order; one layer's weights are in memory at a time.

    Raises:
        BadInputError: the checkpoint lacks a tensor, or weights or scores are not finite.
        PreemptedError: a stop was requested.
    """
    spec, device = context.spec, choose_device(context)
    dtype = TORCH_DTYPES[spec.dtype]
    states = [embedded.to(device) for embedded in embed(context, teacher, layout, dtype)]
    tokens = sum(state[..., 0].numel() for state in states)
    scores = []
    for index in range(teacher.layers):
        context.stop.check()
        layer = load_layer(teacher, index, dtype, device)
        parts = []
        for place, hidden in enumerate(states):
            parts.append(layer_score(layer, hidden, layout.answers(hidden.shape[1]), sight))
            # One sequence at a time: the MLP of a large model is wide.
            states[place] = torch.cat([layer(row) for row in hidden.split(1)])
        scores.append(torch.stack(parts).mean().item())
        if not math.isfinite(scores[-1]):
            raise BadInputError(
                f"the score of layer {index} is not finite: the checkpoint {teacher.source} is damaged, or "
                "its config.json belongs to another model"
            )
        done = index + 1
        context.progress.update(PHASE, done, teacher.layers, fraction=done / teacher.layers, tokens=tokens)
    return scores


def embed(
    context: StageContext, teacher: Teacher, layout: CopyLayout, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Return the embedded copy sequences by distance, each [sequences, tokens, hidden size], on the CPU."""
    text = TokenData(context)
    rows = text.read(0, min(SEQUENCES, text.sequences)).long()
    source = generator(context.spec.seed, "select")
    sets = copy_sequences(rows, layout, teacher.config.vocab_size, source)
    embedding = teacher.read_tensor(EMBEDDING, dtype)
    require_finite({EMBEDDING: embedding}, teacher.source)
    return [functional.embedding(ids, embedding) for ids in sets]


def load_layer(teacher: Teacher, index: int, dtype: torch.dtype, device: torch.device) -> TeacherLayers:
    """Return one layer of the teacher by itself, on `device`."""
    layers = open_layers(teacher.config, [index], dtype, device)
    layers.read_layer(teacher, index)
    return layers


def best(scores: list[float], spec: TrenchcoatSpec) -> list[int]:
    """Return the layers with the highest scores, in order; none that keeps softmax attention anyhow."""
    free = [layer for layer in range(len(scores)) if layer not in spec.attention.keep_softmax_layers]
    ranked = sorted(free, key=lambda layer: (-scores[layer], layer))
    return sorted(ranked[: wide_count(spec.attention, len(scores))])
