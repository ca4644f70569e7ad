"""Stored activations serve any start position, and a student that trains at many is as good at all."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.data import Batch, Starts, TokenData
from trenchcoat_trainer.data.layout import HIDDEN, boundary_path
from trenchcoat_trainer.errors import PreemptedError
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.stages import cria as cria_stage
from trenchcoat_trainer.stages.cria.fused import FusedCria
from trenchcoat_trainer.stages.cria.lora import LoraPhase, block_step, layerwise_step
from trenchcoat_trainer.stages.cria.transfer import TransferPhase, transfer_step
from trenchcoat_trainer.students import LossWeights

from tests.trainer.helpers.tiny_student import make_cria, make_teacher
from tests.trainer.helpers.trainer_samples import StopAfter
from tests.trainer.stages.cria.cria_training import boundaries, make_spec

RAISED = 1000
START = 700
WEIGHTS = {"weights": LossWeights(mse=1000.0, xent=1.0)}


@pytest.fixture(scope="module")
def teacher_states(training_spec, collected_store):
    """Runs the teacher over the first stored sequences: token ids, and states after every layer."""
    context = open_context(training_spec, Stage.CRIA, cria=1, folder=collected_store)
    tokens = TokenData(context).read(0, 4).long()

    def run(dtype: torch.dtype, start: int) -> tuple[torch.Tensor, ...]:
        folder = training_spec.model.source.removeprefix("file://")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        states = []
        for layer in model.model.layers:
            layer.register_forward_hook(lambda module, inputs, output: states.append(output))
        positions = torch.arange(start, start + tokens.shape[1])[None]
        with torch.no_grad():
            model(tokens, position_ids=positions, use_cache=False)
        return tuple(states)

    return context, run


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((left.double() - right.double()).norm() / right.double().norm())


def test_stored_boundaries_are_those_of_any_start(teacher_states):
    context, run = teacher_states
    raised = run(torch.float32, RAISED)
    for boundary, layer in ((1, 1), (2, 3)):
        stored = context.read_tensors(context.artifacts.collect, boundary_path(boundary, 0))[HIDDEN][:4]
        assert distance(raised[layer], stored) < 1e-4


def test_in_bf16_a_start_makes_no_more_difference_than_rounding(teacher_states):
    _, run = teacher_states
    exact = run(torch.float32, 0)
    for layer, (at_0, raised) in enumerate(
        zip(run(torch.bfloat16, 0), run(torch.bfloat16, RAISED), strict=True)
    ):
        rounding = distance(at_0, exact[layer])
        assert 0 < rounding < 0.05
        assert distance(raised, exact[layer]) < 1.5 * rounding


@pytest.fixture(scope="module")
def hidden():
    return boundaries(layers=3)


def test_fused_steps_start_where_the_others_do(hidden):
    inputs = hidden[0][:2]
    cria, plain = (make_cria(make_teacher(3), 0, 2) for _ in range(2))
    fused = FusedCria(cria, positions=START + inputs.shape[1])
    for model in (cria, plain):
        for parameter in model.form_parameters().values():
            parameter.requires_grad_()
    losses = fused.transfer_step(cria, inputs, scale=0.5, start=START, **WEIGHTS)
    expected = transfer_step(plain, inputs, scale=0.5, start=START, **WEIGHTS)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)
    at_0 = fused.transfer_step(cria, inputs, scale=0.5, **WEIGHTS)
    torch.testing.assert_close(at_0, transfer_step(plain, inputs, scale=0.5, **WEIGHTS), rtol=1e-4, atol=0)
    assert not torch.allclose(losses, at_0, rtol=1e-3)


@pytest.mark.parametrize("objective", ["layerwise", "block"])
def test_fused_lora_starts_where_the_other_does(hidden, objective):
    spec = make_spec(criaLora={"lora": {"dropout": "0"}, "objective": objective})
    fused_phase, plain_phase = (LoraPhase(make_cria(make_teacher(3), 0, 2), spec) for _ in range(2))
    fused = FusedCria(fused_phase._cria)
    own = {"layerwise": (fused.layerwise_step, layerwise_step), "block": (fused.block_step, block_step)}
    # Without a stored target, the last Cria's teacher has to start there, too.
    arguments = {"layerwise": WEIGHTS, "block": {"target_BTE": None}}[objective]
    losses = [
        step(phase._cria, hidden_BTE=hidden[0][:2], scale=1.0, seed=0, start=START, **arguments)
        for step, phase in zip(own[objective], (fused_phase, plain_phase), strict=True)
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)


class Recorded:
    """A step that computes nothing but takes note of where it was told to start."""

    def __init__(self, layers: int) -> None:
        self.starts: list[int] = []
        self._layers = layers

    def __call__(self, cria, hidden, target=None, *, start, **options) -> torch.Tensor:
        self.starts.append(start)
        return torch.ones(self._layers)


def test_every_micro_batch_starts_by_itself_and_every_phase_differently(hidden):
    spec = make_spec(transfer={"batchSize": 4, "microBatchSize": 2})
    starts = Starts(share=0.7, below=500)
    expected = {
        name: [starts.start(name, 1, step, index) for step in range(3) for index in range(2)]
        for name in ("transfer", "lora")
    }
    transfer, lora = Recorded(1), Recorded(1)
    phases = (
        TransferPhase(make_cria(make_teacher(3), 0, 0), spec, 3, transfer, starts),
        LoraPhase(make_cria(make_teacher(3), 0, 0), spec, lora, lora, starts),
    )
    for phase in phases:
        for step in range(3):
            phase.step(Batch(hidden[0][:4], None), epoch=1, step=step)
    assert {"transfer": transfer.starts, "lora": lora.starts} == expected
    assert len(set(transfer.starts)) > 2


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["layerwise", "block"])
def test_killed_at_any_step_it_ends_with_the_same_maps_and_adapters(
    open_training, training_spec, change, objective
):
    spec = change(
        training_spec,
        criaLora={"objective": objective, "lora": {"dropout": "0.2"}},
        data={"startPositions": {"share": "0.5"}},
    )
    results = []
    for store, stops in (("undisturbed", ()), ("killed", (1, 5, 4, 3, 1))):
        for steps in stops:
            context = open_training(spec, Stage.CRIA, cria=1, store=store, stop=StopAfter(steps - 1))
            with pytest.raises(PreemptedError):
                cria_stage.run(context)
        context = open_training(spec, Stage.CRIA, cria=1, store=store)
        cria_stage.run(context)
        names = (cria_stage.FEATURE_MAPS, cria_stage.ADAPTERS)
        results.append([context.read_tensors(context.artifact, name) for name in names])
    for whole, pieces in zip(*results, strict=True):
        assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    plain = open_training(change(spec, data={"startPositions": {"share": "0"}}), Stage.CRIA, cria=1)
    cria_stage.run(plain)
    maps = plain.read_tensors(plain.artifact, cria_stage.FEATURE_MAPS)
    assert not torch.equal(maps["layers.2.w_q"], results[0][0]["layers.2.w_q"])


@pytest.mark.slow
def test_trained_at_many_positions_it_is_as_good_at_others():
    teacher = make_teacher(1)
    training, held_out = (embedded(teacher, 64, seed) for seed in (2, 3))

    def excess(starts: Starts) -> float:
        """Loss on other sequences at raised positions, over that at 0."""
        cria = make_cria(teacher, 0, 0)
        spec = make_spec(transfer={"batchSize": 8, "microBatchSize": 2, "learningRate": "1e-1"})
        phase = TransferPhase(cria, spec, 60, starts=starts)
        for step in range(60):
            first = 8 * step % len(training)
            phase.step(Batch(training[first : first + 8], None), epoch=0, step=step)
        phase.finish()
        for parameter in cria.form_parameters().values():
            parameter.requires_grad_()
        at_0, *raised = (
            float(transfer_step(cria, held_out[:16], scale=1.0, start=start, **WEIGHTS).mean())
            for start in (0, 100, 150, 199)
        )
        return sum(raised) / len(raised) / at_0

    assert excess(Starts()) > 1.25
    assert excess(Starts(share=0.7, below=200)) < 1.1


def embedded(teacher, sequences: int, seed: int) -> torch.Tensor:
    """Embeddings of random tokens, [sequences, 32, hidden]."""
    ids = torch.randint(0, 61, (sequences, 32), generator=torch.Generator().manual_seed(seed))
    return teacher.model.embed_tokens(ids).detach()
