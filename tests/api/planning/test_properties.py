"""More of anything never needs less."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from trenchcoat_api.planning import storage
from trenchcoat_api.planning.evaluation import batches, longest_share, passes, reads_of_weights
from trenchcoat_api.planning.fit import misfits
from trenchcoat_api.planning.memory import gpu_need, host_need, ranks_of
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.plan import Given, make_plan
from trenchcoat_api.planning.rates import Rates
from trenchcoat_api.planning.timing import Fleet, times
from trenchcoat_api.stages import Stage

from tests.api.planning.models import NAMES, model, published

RATES = Rates.load()
TRIES = settings(max_examples=40, deadline=None)

names = st.sampled_from(NAMES)
changes = st.fixed_dictionaries(
    {
        "attention__form": st.sampled_from(["lolcats", "window"]),
        "criaLora__objective": st.sampled_from(["layerwise", "block"]),
        "criaLora__epochs": st.integers(0, 2),
        "transfer__epochs": st.integers(0, 2),
        "stitch__epochs": st.integers(0, 2),
        "stitch__nodes": st.integers(1, 3),
        "collect__nodes": st.integers(1, 3),
        "collect__gpusPerNode": st.integers(0, 8),
        "evaluate__recallSamples": st.sampled_from([0, 8]),
        "evaluate__nodes": st.integers(1, 3),
        "evaluate__gpusPerNode": st.integers(0, 8),
        "retention": st.sampled_from(["Keep", "DeleteIntermediate"]),
        "dtype": st.sampled_from(["bfloat16", "float32"]),
    }
)


def made(name: str, fields: dict[str, Any], **more: Any) -> Outline:
    return Outline.of(published(**{**fields, **more}), model(name))


def needs(outline: Outline) -> dict[str, float]:
    """All that a plan tells in numbers that may not shrink."""
    found: dict[str, float] = {
        "peak": storage.peak_bytes(outline),
        "written": storage.written_bytes(outline),
        "passes": reads_of_weights(outline),
    }
    fleet = Fleet(RATES.kinds["h100-80gb"], RATES, 4)
    result = times(outline, fleet)
    found["wall"] = result.wall
    for time in result.stages:
        found[f"{time.stage} GPU seconds"] = time.gpu_seconds
    for stage in Stage:
        need = gpu_need(outline, stage)
        found[f"{stage} GPU"] = need.total if need else 0
        found[f"{stage} host"] = host_need(outline, stage).total
    return found


def no_less(less: Outline, more: Outline) -> None:
    before, after = needs(less), needs(more)
    shrunk = {key: (value, after[key]) for key, value in before.items() if after[key] < value * (1 - 1e-9)}
    assert not shrunk


@TRIES
@given(names, changes, st.integers(1024, 10**7), st.integers(0, 10**7))
def test_more_tokens(name: str, fields: dict[str, Any], tokens: int, added: int) -> None:
    no_less(
        made(name, fields, data__tokens=tokens),
        made(name, fields, data__tokens=tokens + added),
    )


@TRIES
@given(names, changes, st.integers(1, 15), st.integers(0, 8))
def test_longer_crias_need_more_of_a_gpu_and_fewer_boundaries(
    name: str, fields: dict[str, Any], layers: int, added: int
) -> None:
    short = made(name, fields, layersPerCria=layers)
    long = made(name, fields, layersPerCria=min(layers + added, short.facts.layers))
    for stage in (Stage.CRIA, Stage.EVALUATE):
        ours, theirs = gpu_need(short, stage), gpu_need(long, stage)
        assert (ours is None) == (theirs is None)
        assert ours is None or theirs is None or ours.total <= theirs.total
    assert storage.activation_bytes(short) >= storage.activation_bytes(long)


@TRIES
@given(names, changes, st.integers(1, 4))
def test_more_layers(name: str, fields: dict[str, Any], added: int) -> None:
    spec = published(**fields)
    less, more = model(name), model(name, num_hidden_layers=model(name).facts.layers + added)
    no_less(Outline.of(spec, less), Outline.of(spec, more))


@TRIES
@given(names, changes, st.integers(1, 6))
def test_more_nodes_never_need_more_of_a_gpu(name: str, fields: dict[str, Any], added: int) -> None:
    more = {f"{part}__nodes": fields[f"{part}__nodes"] + added for part in ("stitch", "collect")}
    for stage in (Stage.COLLECT, Stage.STITCH):
        before = gpu_need(made(name, fields), stage)
        after = gpu_need(made(name, fields, **more), stage)
        if fields["stitch__nodes"] == 1 and stage is Stage.STITCH:
            continue  # one rank alone gathers nothing
        assert (before is None) == (after is None)
        assert before is None or after is None or after.total <= before.total


@TRIES
@given(names, changes, st.integers(1, 64))
def test_ranks_of_the_evaluation_have_about_as_much_to_do(
    name: str, fields: dict[str, Any], nodes: int
) -> None:
    outline = made(name, fields, evaluate__nodes=nodes)
    ranks = ranks_of(outline, Stage.EVALUATE)
    for group in passes(outline):
        counts = [(item.length, batches(outline, item) * item.forms) for item in group]
        share = longest_share(outline, group, lambda item: float(item.length))
        assert share * ranks >= sum(length * count for length, count in counts) * (1 - 1e-9)
        assert share <= sum(length * -(-count // ranks) for length, count in counts)


@TRIES
@given(names, changes, st.integers(1, 64), st.integers(0, 64))
def test_more_gpus_are_never_slower(name: str, fields: dict[str, Any], gpus: int, added: int) -> None:
    outline, kind = made(name, fields), RATES.kinds["h200-141gb"]
    walls = [times(outline, Fleet(kind, RATES, count)).wall for count in (gpus, gpus + added)]
    assert walls[1] <= walls[0] * (1 + 1e-9)


@TRIES
@given(names, changes, st.integers(10**9, 3 * 10**11))
def test_what_fits_goes_on_fitting_and_the_whole_is_the_sum(
    name: str, fields: dict[str, Any], memory: int
) -> None:
    outline = made(name, fields)
    found = misfits(outline, lambda stage: memory)
    assert {item.stage for item in misfits(outline, lambda stage: 2 * memory)} <= {
        item.stage for item in found
    }
    plan = make_plan(outline, Given(rates=RATES, gpu_memory=memory, price=3.0))
    assert [item.name for item in plan.misfits] == [item.stage for item in found]
    assert abs(plan.gpu_hours - sum(row.gpu_hours for row in plan.stages)) <= 0.001 * plan.gpu_hours + 1e-9
    assert plan.cost is not None and abs(plan.cost - 3 * plan.gpu_hours) <= 0.01 * plan.cost + 0.02
    assert plan.store.peak_bytes >= max(plan.store.after.values())
