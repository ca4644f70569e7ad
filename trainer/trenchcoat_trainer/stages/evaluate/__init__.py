"""The evaluate stage: perplexity and recall of the teacher and of the student after every stage.

One code measures all of them, Cria by Cria: one Cria's weights are on the device at a time, while the next
one's are read, and the hidden states of some sequences in memory or in files, so that one GPU suffices for a
model of any size. Sets of sequences (held-out text at several lengths, tests of recall) are measured in
passes that hold no more than the largest of them. Several ranks share their batches out, which changes no
number; what takes the whole model is the first one's alone. Leaves ``report.json``.
"""

import json

import torch
from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.decode_state import DecodeState, decode_state

from trenchcoat_trainer.checkpoints.pod_weights import PodWeights
from trenchcoat_trainer.checkpoints.teacher import model_facts
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.models.artifacts import (
    adapted_teacher_adapters,
    load_student_config,
    stitch_adapters,
)
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.devices import choose_device
from trenchcoat_trainer.runtime.ranks import joined
from trenchcoat_trainer.runtime.sharing import Sharing, shared_out
from trenchcoat_trainer.stages.evaluate.course import Course, costs
from trenchcoat_trainer.stages.evaluate.crossing import Ledger, Pass, Place, cross
from trenchcoat_trainer.stages.evaluate.gathering import Scores, Shares, gather, load_scores, save_scores
from trenchcoat_trainer.stages.evaluate.plan import EvaluationPlan, make_plan
from trenchcoat_trainer.stages.evaluate.report import REPORT, Results, facts, report
from trenchcoat_trainer.stages.evaluate.room import roomy_device
from trenchcoat_trainer.stages.evaluate.samples import take_samples, why_no_samples
from trenchcoat_trainer.stages.evaluate.saved import SavedStates
from trenchcoat_trainer.stages.evaluate.scores import score
from trenchcoat_trainer.stages.evaluate.sets import EvaluationSet, passes
from trenchcoat_trainer.stages.evaluate.states import Begin, HiddenStates, hold, memory_bytes
from trenchcoat_trainer.stages.evaluate.tasks import check_harness, run_tasks, why_no_tasks
from trenchcoat_trainer.stages.evaluate.variants import ADAPTED, Source

__all__ = ["REPORT", "run"]


def run(context: StageContext) -> None:
    """Measure and write the artifact.

    Raises:
        BadInputError: there is no held-out text.
        PreemptedError: a stop was requested on any rank; what was saved stays, and the next start goes on.
    """
    device = choose_device(context)
    with (
        joined(context.rank, context.world_size, device, context.stop),
        shared_out(context) as sharing,
        torch.no_grad(),
    ):
        _run(context, device, sharing)


def _run(context: StageContext, device: torch.device, sharing: Sharing) -> None:
    config = load_student_config(context)
    model = context.manifest(context.artifacts.tokenize).facts.model
    if model is None:
        raise BadInputError("the manifest of tokenize has no facts of the model: run the tokenize stage anew")
    check_harness(context.spec)
    decode = decode_state(context.spec, model)
    plan = make_plan(context, config, decode)
    variants = (*plan.variants, *plan.parts)
    adapters = {"stitched": stitch_adapters(context)}
    if ADAPTED in variants:
        adapters["adaptedTeacher"] = adapted_teacher_adapters(context)
    cost = costs(context, model, config.keep_softmax_layers or (), on_gpu=device.type == "cuda")
    course = Course(cost, variants, context.crias, _batch_tokens(context))
    ledger = Ledger(context, sharing, plan.sets, course)
    with PodWeights(context, sharing, device, ledger.tell) as weights:
        rest = weights.rest()
        embeddings = rest["model.embed_tokens.weight"]
        head = {
            "model.norm.weight": rest["model.norm.weight"].to(device),
            "lm_head.weight": rest.get("lm_head.weight", embeddings).to(device),  # absent when tied
        }
        del rest
        source = Source(weights, variants, adapters, decode.equal_window, embeddings.cpu(), device)
        del embeddings
        context.progress.forecast = ledger.left
        scores, shares = measure(context, config, plan.sets, source, head, ledger)
        context.progress.forecast = None
    sharing.wait_for_all("measured")  # and nobody writes what is not complete any more

    del head, source  # the whole model takes their place
    if sharing.is_first:
        _write_report(context, device, model, plan, decode, (scores, shares))
    sharing.wait_for_all("complete")


def _write_report(
    context: StageContext,
    device: torch.device,
    model: ModelFacts,
    plan: EvaluationPlan,
    decode: DecodeState,
    measured: tuple[Scores, Shares],
) -> None:
    """Measure what takes the whole model, and write the artifact; one rank alone."""
    if no_samples := why_no_samples(context.spec, model, device):
        plan.left_out.append(no_samples)
    samples = [] if no_samples else take_samples(context, device)
    if why_not := why_no_tasks(context.spec, model, device):
        plan.left_out.append(why_not)
    forms = [variant.name for variant in (*plan.variants, *plan.parts)]
    tasks = {} if why_not else run_tasks(context, forms, device)

    found = Results(plan, *measured, decode, tasks, samples)
    context.writer.write(REPORT, json.dumps(report(found), indent=1).encode())
    context.writer.finish(facts(context.spec, found))


def measure(
    context: StageContext,
    config: TrenchcoatLlamaConfig,
    sets: list[EvaluationSet],
    source: Source,
    head: dict[str, torch.Tensor],
    ledger: Ledger,
) -> tuple[Scores, Shares]:
    """Measure every set, pass by pass; passes that an earlier attempt finished are not run again.

    The batches of a pass are dealt to the ranks one after another, over all its sets and forms, so that none
    has more than one more than another.

    Args:
        context: the stage's context.
        config: the student's configuration.
        sets: what to measure on.
        source: what the variants are made of.
        head: ``model.norm.weight`` and ``lm_head.weight``, on the device to compute on.
        ledger: counts what is done.

    Returns:
        Scores by the names of variant and set, and the share of attention outside the window by layer; of
        all batches on the first rank alone.

    Raises:
        PreemptedError: a stop was requested.
    """
    sharing, tokens, groups = ledger.sharing, _batch_tokens(context), passes(sets)
    dealt = [_deal(group, tokens, sharing) for group in groups]
    scores, shares = load_scores(context.checkpoint)
    for group, numbers in zip(groups, dealt, strict=True):
        for item in group:
            for form in item.forms:
                ledger.course.expect(form, item, numbers[form, item.name])
    begun = [
        {
            (form, item.name): begin(item, tokens, numbers[form, item.name], config)
            for item in group
            for form in item.forms
        }
        for group, numbers in zip(groups, dealt, strict=True)
    ]
    most = max(memory_bytes(places.values()) for places in begun)
    needed = most + source.embeddings.nbytes if most else 0
    where = roomy_device(source.device, needed, context.spec, model_facts(config))
    embeddings = source.embeddings.to(where)
    left = [number for number, places in enumerate(begun) if not places.keys() <= scores.keys()]
    with SavedStates(context.checkpoint) as saved:
        for number, (group, numbers) in enumerate(zip(groups, dealt, strict=True)):
            if number not in left:
                ledger.skip(group, numbers)
                continue
            states: dict[Place, HiddenStates] = {}
            for item in group:
                for form in item.forms:
                    name = f"{form}-{item.name}-{item.batch_size(tokens)}"
                    states[form, item.name] = hold(saved, name, begun[number][form, item.name], embeddings)
            own = Pass(group, states, has_shares=group[0] is sets[0])
            later = next((later for later in left if later > number), None)
            if later is not None and sharing.pod.start < _batch_count(groups[later], tokens):
                own.following = memory_bytes(begun[later].values()) if embeddings.is_cpu else 0
            cross(context, config, own, source, ledger)
            found: Scores = {}
            for item in group:
                for form in item.forms:
                    place = (form, item.name)
                    found[place] = score(states[place], item, head, config, item.batch_size(tokens))
                    ledger.course.scored(item, numbers[place])
            ledger.scored()
            found, of_all = gather(context.checkpoint, sharing, number, (found, own.shares), ledger)
            scores, shares = scores | found, shares | of_all
            if sharing.is_first:
                save_scores(context.checkpoint, scores, shares)
    return scores, shares


def _batch_tokens(context: StageContext) -> int:
    """About how many a batch has."""
    return context.spec.evaluate.batch_size * context.spec.data.sequence_length


def _batch_count(group: list[EvaluationSet], tokens: int) -> int:
    """The batches of a pass, of all ranks."""
    return sum(item.batch_count(tokens) * len(item.forms) for item in group)


def _deal(group: list[EvaluationSet], tokens: int, sharing: Sharing) -> dict[Place, range]:
    """The numbers of this rank's batches of a pass."""
    numbers: dict[Place, range] = {}
    dealt = 0
    for item in group:
        count = item.batch_count(tokens)
        for form in item.forms:
            numbers[form, item.name] = sharing.own(dealt, count)
            dealt += count
    return numbers


def begin(item: EvaluationSet, tokens: int, numbers: range, config: TrenchcoatLlamaConfig) -> Begin:
    """What some of a set's states are before the first Cria, in batches of about so many tokens."""
    batches = item.tokens.split(item.batch_size(tokens))
    return Begin(
        numbers=numbers,
        tokens=batches.__getitem__,
        bytes=sum(batches[batch].numel() for batch in numbers) * config.hidden_size * config.dtype.itemsize,
    )
