"""Rates from a run: its own plan tells what it took, and plans of others what they would."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from trenchcoat_api.artifacts import Artifacts, Manifest
from trenchcoat_api.paces import Paces, PhasePace
from trenchcoat_api.planning.measured import Ran, as_yaml, fit
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.rates import Kind, PassRate, Rates, RatesError
from trenchcoat_api.planning.timing import (
    Fleet,
    collect_seconds,
    cria_seconds,
    end_to_end_seconds,
    evaluation_seconds,
    lora_seconds,
    stage_seconds,
    times,
    transfer_seconds,
)
from trenchcoat_api.stages import Stage

from tests.api.planning.models import outline

KNOWN = Rates.load()
SMALL = {"layersPerCria": 8, "collect__batchSize": 16, "stitch__batchSize": 8}
BETWEEN = 3.0
STARTS = {
    Stage.TOKENIZE: 4.0, Stage.COLLECT: 5.0, Stage.SHARD: 6.0, Stage.CRIA: 27.0,
    Stage.STITCH: 31.0, Stage.EVALUATE: 12.0, Stage.EXPORT: 7.0,
}  # fmt: skip


def machine() -> Kind:
    """One that nobody has measured: every pass slower than an H100's, each by another factor."""
    kind, passes = KNOWN.kinds["h100-80gb"], {}
    for factor, (name, rate) in enumerate(kind.passes, 2):
        if rate is not None:
            passes[name] = rate.model_copy(
                update={
                    "tflops": rate.tflops / factor,
                    "attention_ms": {length: ms * factor for length, ms in rate.attention_ms.items()},
                    "host_ms": rate.host_ms * factor,
                }
            )
    return kind.model_copy(
        update={"passes": kind.passes.model_copy(update=passes), "stage_start_seconds": STARTS}
    )


def run(of: Outline, kind: Kind, ranks: int = 1) -> list[Ran]:
    """What a run leaves on that machine; half of each phase's steps were timed."""
    fleet, began, found = Fleet(kind, KNOWN, 1), datetime(2026, 11, 30, tzinfo=UTC), list[Ran]()
    ends: dict[str, datetime] = {}
    for artifact in Artifacts(of.spec).all(list(of.crias)):
        if artifact.stage is Stage.CRIA:
            seconds = cria_seconds(of, fleet, 8)
        else:
            seconds = stage_seconds(of, fleet, artifact.stage)
        start = max((ends[key] for key in artifact.inputs), default=began) + timedelta(seconds=BETWEEN)
        ends[artifact.key] = start + timedelta(seconds=seconds - BETWEEN)
        phases = [
            PhasePace(phase=name, share=share, timed=share / 2, seconds=took / 2)
            for name, share, took in phases_of(of, fleet, artifact.stage)
            if took
        ]
        manifest = Manifest(
            stage=artifact.stage, key=artifact.key, inputs=list(artifact.inputs),
            started_at=start, completed_at=ends[artifact.key], seconds=seconds - BETWEEN,
        )  # fmt: skip
        device = "cpu" if artifact.stage in (Stage.TOKENIZE, Stage.SHARD, Stage.EXPORT) else "NVIDIA H200"
        found.append(Ran(artifact, manifest, Paces(device=device, ranks=ranks, phases=phases)))
    return found


def phases_of(of: Outline, fleet: Fleet, stage: Stage) -> list[tuple[str, float, float]]:
    tokens = (of.sequences + of.held_out) * of.length
    own: dict[Stage, list[tuple[str, float, float]]] = {
        Stage.TOKENIZE: [("tokenize", 1.0, tokens / KNOWN.text.tokens_per_second)],
        Stage.COLLECT: [("collect", 1.0, collect_seconds(of, fleet))],
        Stage.CRIA: [
            ("transfer", 0.4, transfer_seconds(of, fleet, 8)),
            ("lora", 0.6, lora_seconds(of, fleet, 8)),
        ],
        Stage.STITCH: [("stitch", 1.0, end_to_end_seconds(of, fleet, Stage.STITCH))],
        Stage.EVALUATE: [("evaluate", 1.0, evaluation_seconds(of, fleet))],
    }
    return own.get(stage, [])


def told(of: Outline, rates: Rates) -> dict[Stage, float]:
    return {time.stage: time.job for time in times(of, Fleet(rates.kind(None)[1], rates, 1)).stages}


def close(expected: dict[Stage, float], rel: float) -> dict[Stage, object]:
    return {stage: pytest.approx(seconds, rel=rel) for stage, seconds in expected.items()}


@pytest.mark.parametrize("like", ["h100-80gb", "h200-141gb"])
@pytest.mark.parametrize("objective", ["layerwise", "block"])
def test_the_plan_of_a_run_tells_what_it_took(like: str, objective: str) -> None:
    """Whatever proportions are taken: what they get wrong of the steps is told right in all."""
    of = outline("llama-3.2-1b", criaLora__objective=objective, **SMALL)
    truth = times(of, Fleet(machine(), KNOWN, 1))
    fitted = fit(of, run(of, machine()), KNOWN, name="mine", like=like)
    assert fitted.missing == ()
    assert told(of, fitted.rates) == close({time.stage: time.job for time in truth.stages}, 0.001)


@pytest.mark.parametrize(
    "changes",
    [{"data__tokens": 5_000_000}, {"layersPerCria": 4}, {"transfer__epochs": 3, "stitch__epochs": 2}],
)
def test_another_run_takes_what_the_plan_says_by_its_rates(changes: dict) -> None:
    of = outline("llama-3.2-1b", **SMALL)
    other = outline("llama-3.2-1b", **(SMALL | changes))
    truth = times(other, Fleet(machine(), KNOWN, 1))
    fitted = fit(of, run(of, machine()), KNOWN, name="mine", like="h100-80gb")
    assert told(other, fitted.rates) == close({time.stage: time.job for time in truth.stages}, 0.001)


def test_rates_are_a_file_that_a_plan_reads(tmp_path: Path) -> None:
    of = outline("llama-3.2-1b", **SMALL)
    fitted = fit(of, run(of, machine()), KNOWN, name="mine")
    assert fitted.like == "h200-141gb"  # by the device's name
    file = tmp_path / "rates.yaml"
    file.write_text(as_yaml(fitted.rates))
    read = Rates.load(file)
    assert read.default == "mine" and {"h100-80gb", "h200-141gb"} < read.kinds.keys()
    assert told(of, read) == close(told(of, fitted.rates), 0.001)


def test_what_a_run_does_not_tell_is_as_much_slower_as_the_rest() -> None:
    of = outline("llama-3.2-1b", **SMALL)
    slower = KNOWN.kinds["h200-141gb"]
    known = {name: rate for name, rate in slower.passes if rate is not None}
    passes = {name: thrice(rate) for name, rate in known.items()}
    slower = slower.model_copy(update={"passes": slower.passes.model_copy(update=passes)})
    ran = [item for item in run(of, slower) if item.artifact.stage is not Stage.EVALUATE]
    fitted = fit(of, ran, KNOWN, name="mine")
    assert fitted.missing == (Stage.EVALUATE,)
    kind = fitted.rates.kinds["mine"]
    for name, rate in known.items():  # block among them, which the run did not use either
        assert getattr(kind.passes, name).tflops == pytest.approx(rate.tflops / 3, rel=0.001), name
    assert kind.start(Stage.EVALUATE) == min(kind.stage_start_seconds.values())


def thrice(rate: PassRate) -> PassRate:
    """Three times as slow."""
    slow = {length: 3 * ms for length, ms in rate.attention_ms.items()}
    return rate.model_copy(
        update={"tflops": rate.tflops / 3, "attention_ms": slow, "host_ms": 3 * rate.host_ms}
    )


def test_on_a_cpu_steps_go_by_their_products() -> None:
    """A host that launches kernels has no part in it: half the micro-batch takes half the time."""
    of = outline("llama-3.2-1b", **SMALL)
    ran = [
        replace(item, paces=item.paces.model_copy(update={"device": "cpu"})) for item in run(of, machine())
    ]
    fitted = fit(of, ran, KNOWN, name="mine")
    passes = fitted.rates.kinds["mine"].passes
    assert passes.transfer.host_ms == passes.forward.host_ms == 0
    half = outline("llama-3.2-1b", **(SMALL | {"stitch__microBatchSize": 4, "transfer__batchSize": 2}))
    assert told(half, fitted.rates)[Stage.STITCH] == pytest.approx(told(of, fitted.rates)[Stage.STITCH])
    assert told(of, fitted.rates) == close(
        {item.artifact.stage: item.manifest.seconds + BETWEEN for item in ran}, 0.001
    )


def test_as_many_ranks_count_as_there_were() -> None:
    """A machine of one GPU runs by one process what the spec wants on 8."""
    eight = {f"{stage}__gpusPerNode": 8 for stage in ("collect", "stitch", "evaluate")}
    of = outline("llama-3.2-1b", **eight, **SMALL)
    alone = replace(of, spec=outline("llama-3.2-1b", **SMALL).spec)
    fitted = fit(of, run(alone, machine()), KNOWN, name="mine")
    truth = times(alone, Fleet(machine(), KNOWN, 1))
    assert told(alone, fitted.rates) == close({time.stage: time.job for time in truth.stages}, 0.001)


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda ran: [], "run it anew"), (lambda ran: ran, "no rates of a GPU 'tpu'")],
)
def test_what_cannot_be_fitted(change: Callable[[list[Ran]], list[Ran]], message: str) -> None:
    of = outline("llama-3.2-1b", **SMALL)
    with pytest.raises(RatesError, match=message):
        fit(of, change(run(of, machine())), KNOWN, name="mine", like="tpu")
