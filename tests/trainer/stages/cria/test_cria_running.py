"""Steps that run packed compute what steps do that run micro-batch by micro-batch."""

import pytest
import torch
from trenchcoat_trainer.data import Batch, Starts
from trenchcoat_trainer.stages.cria.fused import FusedCria
from trenchcoat_trainer.stages.cria.lora import LoraPhase
from trenchcoat_trainer.stages.cria.running import Draw, MicroBatches, WholeSteps
from trenchcoat_trainer.stages.cria.transfer import TransferPhase

from tests.trainer.helpers.tiny_student import make_cria, make_teacher
from tests.trainer.stages.cria.cria_training import boundaries, make_spec

STARTS = Starts(share=0.7, below=500)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def hidden():
    return boundaries(layers=3)


def phase_of(name, packed, dropout="0.3"):
    """A phase over fused weights, with as many sequences at once; None: as the spec cuts the batch."""
    settings = {"batchSize": 6, "microBatchSize": 2}
    lora = {"lora": {"dropout": dropout}, "objective": name if name != "transfer" else "layerwise"}
    plateau = {"every": 3, "patience": 0, "factor": "0.5"}
    spec = make_spec(transfer=settings | {"plateau": plateau}, criaLora=settings | lora)
    cria = make_cria(make_teacher(3), 0, 1)
    fused = FusedCria(cria, positions=600)
    runner = MicroBatches(CPU) if packed is None else WholeSteps(CPU, packed, moved=True, graphs=False)
    if name == "transfer":
        phase = TransferPhase(cria, spec, 6, fused.transfer_step, STARTS, runner)
        return phase, phase._maps
    phase = LoraPhase(cria, spec, fused.layerwise_step, fused.block_step, STARTS, runner)
    with torch.no_grad():
        for number, parameter in enumerate(phase.adapters.values()):
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
    return phase, phase.adapters


@pytest.mark.parametrize("name", ["transfer", "layerwise", "block"])
def test_packed_steps_learn_what_micro_batches_do(hidden, name):
    (phase, found), (plain, expected) = phase_of(name, packed=4), phase_of(name, packed=None)
    for step, size in enumerate((6, 5)):  # an epoch may end in a smaller batch
        batch = Batch(hidden[0][:size], hidden[2][:size])
        one, other = (p.step(batch, epoch=0, step=step) for p in (phase, plain))
        assert one == pytest.approx(other, rel=1e-4)
    for key, parameter in expected.items():
        limit = 1e-4 * float(parameter.detach().abs().max())
        torch.testing.assert_close(found[key], parameter, rtol=1e-3, atol=limit, msg=key)


def test_each_sequence_keeps_the_start_and_the_seed_of_its_micro_batch(hidden):
    seen = []

    def compute(parts):
        seen.extend((part.start.tolist(), part.seed.tolist(), part.share) for part in parts)
        return torch.zeros(2, 1)

    batch = Batch(hidden[0][:5], None)
    WholeSteps(CPU, 3, moved=True, graphs=False)(batch, [Draw(7, 10), Draw(8, 20), Draw(9, 30)], 2, compute)
    assert seen == [([7, 7, 8], [10, 11, 20], 0.6), ([8, 9], [21, 30], 0.4)]


def test_dropout_differs_between_adapters_and_steps(hidden):
    (phase, _), (other, _) = phase_of("layerwise", 6), phase_of("layerwise", 6)
    batch = Batch(hidden[0][:6], None)
    first = phase.step(batch, epoch=0, step=0)
    assert other.step(batch, epoch=0, step=1) != first


@pytest.mark.parametrize("name", ["transfer", "block"])
def test_a_step_may_end_after_the_next_has_begun_unless_the_schedule_waits_for_it(hidden, name):
    (phase, found), (plain, expected) = phase_of(name, 6), phase_of(name, 6)
    batch = Batch(hidden[0][:6], hidden[2][:6])
    ended, waited = [], []
    for step in range(6):
        phase.begin(batch, epoch=0, step=step)
        waited.append(phase.decides)
        while len(phase._begun) > (0 if phase.decides else 1):
            ended.append(phase.end())
    while phase._begun:
        ended.append(phase.end())
    assert ended == [plain.step(batch, epoch=0, step=step) for step in range(6)]
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    # The schedule looks at every third of the 6 steps.
    assert waited == ([False, False, True] * 2 if name == "transfer" else [False] * 6)
