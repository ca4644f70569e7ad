"""The evaluate stage: perplexity and recall of the teacher and of the student after every stage.

One code measures all of them, Cria by Cria: one Cria's weights are in memory at a time, and the hidden states
of some sequences in memory or in files, so that one GPU suffices for a model of any size. Sets of sequences
(held-out text at several lengths, tests of recall) are measured in passes that hold no more than the largest
of them. Leaves ``report.json``.
"""

import json
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from trenchcoat_api.decode_state import decode_state

from trenchcoat_trainer.checkpoints.shards import load_rest_weights
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.models.artifacts import (
    adapted_teacher_adapters,
    load_student_config,
    stitch_adapters,
)
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.devices import choose_device
from trenchcoat_trainer.stages.evaluate.crossing import Ledger, Pass, Place, cross
from trenchcoat_trainer.stages.evaluate.plan import make_plan
from trenchcoat_trainer.stages.evaluate.report import REPORT, Results, facts, report
from trenchcoat_trainer.stages.evaluate.samples import take_samples, why_no_samples
from trenchcoat_trainer.stages.evaluate.saved import SavedStates
from trenchcoat_trainer.stages.evaluate.scores import Score, score
from trenchcoat_trainer.stages.evaluate.sets import EvaluationSet, passes
from trenchcoat_trainer.stages.evaluate.states import Begin, hold
from trenchcoat_trainer.stages.evaluate.tasks import check_harness, run_tasks, why_no_tasks
from trenchcoat_trainer.stages.evaluate.variants import ADAPTED, Source

__all__ = ["REPORT", "run"]
SCORES = "scores"
_FIELDS = [field.name for field in fields(Score)]


@torch.no_grad()
def run(context: StageContext) -> None:
    """Measure and write the artifact.

    Raises:
        BadInputError: there is no held-out text.
        PreemptedError: a stop was requested; what was saved stays, and the next start goes on.
    """
    config, device = load_student_config(context), choose_device(context)
    model = context.manifest(context.artifacts.tokenize).facts.model
    if model is None:
        raise BadInputError("the manifest of tokenize has no facts of the model: run the tokenize stage anew")
    check_harness(context.spec)
    decode = decode_state(context.spec, model)
    plan = make_plan(context, config, decode)
    rest = load_rest_weights(context)
    embeddings = rest["model.embed_tokens.weight"]
    head = {
        "model.norm.weight": rest["model.norm.weight"].to(device),
        "lm_head.weight": rest.get("lm_head.weight", embeddings).to(device),  # absent when tied
    }
    variants = (*plan.variants, *plan.parts)
    adapters = {"stitched": stitch_adapters(context)}
    if ADAPTED in variants:
        adapters["adaptedTeacher"] = adapted_teacher_adapters(context)
    source = Source(variants, adapters, decode.equal_window, embeddings, device)
    scores, shares = measure(context, config, plan.sets, source, head)

    del head, rest, embeddings, source  # the whole model takes their place
    if no_samples := why_no_samples(context.spec, model, device):
        plan.left_out.append(no_samples)
    samples = [] if no_samples else take_samples(context, device)
    if why_not := why_no_tasks(context.spec, model, device):
        plan.left_out.append(why_not)
    tasks = {} if why_not else run_tasks(context, [variant.name for variant in variants], device)

    found = Results(plan, scores, shares, decode, tasks, samples)
    context.writer.write(REPORT, json.dumps(report(found), indent=1).encode())
    context.writer.finish(facts(context.spec, found))


def measure(
    context: StageContext,
    config: TrenchcoatLlamaConfig,
    sets: list[EvaluationSet],
    source: Source,
    head: dict[str, torch.Tensor],
) -> tuple[dict[Place, Score], dict[str, float]]:
    """Measure every set, pass by pass; passes that an earlier attempt finished are not run again.

    Args:
        context: the stage's context.
        config: the student's configuration.
        sets: what to measure on.
        source: what the variants are made of.
        head: ``model.norm.weight`` and ``lm_head.weight``, on the device to compute on.

    Returns:
        Scores by the names of variant and set, and the share of attention outside the window by layer.

    Raises:
        PreemptedError: a stop was requested.
    """
    tokens = context.spec.evaluate.batch_size * context.spec.data.sequence_length
    sizes = {item.name: item.batch_size(tokens) for item in sets}
    batches = {item.name: -(-len(item.tokens) // sizes[item.name]) * len(item.forms) for item in sets}
    share = 1.0 if context.spec.evaluate.tasks is None else 0.5
    ledger = Ledger(len(context.crias) * sum(batches.values()), share)
    scores, shares = load_scores(context)
    with SavedStates(context.checkpoint) as saved:
        for group in passes(sets):
            if all((form, item.name) in scores for item in group for form in item.forms):
                ledger.done += len(context.crias) * sum(batches[item.name] for item in group)
                continue
            states = {
                (form, item.name): hold(
                    saved,
                    f"{form}-{item.name}-{sizes[item.name]}",
                    begin(item, sizes[item.name], source, config),
                )
                for item in group
                for form in item.forms
            }
            own = Pass(group, states, has_shares=group[0] is sets[0])
            cross(context, config, own, source, ledger)
            for item in group:
                for form in item.forms:
                    place = (form, item.name)
                    scores[place] = score(states[place], item, head, config, sizes[item.name])
            shares |= own.shares
            save_scores(context, scores, shares)
    return scores, shares


def begin(item: EvaluationSet, size: int, source: Source, config: TrenchcoatLlamaConfig) -> Begin:
    """What a set's states are before the first Cria, in batches of `size` sequences."""
    tokens = item.tokens.split(size)
    return Begin(
        batches=len(tokens),
        embed=lambda batch: F.embedding(tokens[batch], source.embeddings),
        bytes=item.tokens.numel() * config.hidden_size * config.dtype.itemsize,
    )


def load_scores(context: StageContext) -> tuple[dict[Place, Score], dict[str, float]]:
    """What the passes that an earlier attempt finished have left."""
    saved = context.checkpoint.load(SCORES)
    if saved is None:
        return {}, {}
    tensors, state = saved
    places: list[Any] = state["places"]
    scores = {
        (form, name): Score(**{field: tensors[f"{index}.{field}"] for field in _FIELDS})
        for index, (form, name) in enumerate(places)
    }
    return scores, state["shares"]


def save_scores(context: StageContext, scores: dict[Place, Score], shares: dict[str, float]) -> None:
    """Keep what the passes so far have left."""
    tensors = {
        f"{index}.{field}": getattr(found, field)
        for index, found in enumerate(scores.values())
        for field in _FIELDS
    }
    context.checkpoint.save(tensors, {"places": list(scores), "shares": shares}, SCORES)
