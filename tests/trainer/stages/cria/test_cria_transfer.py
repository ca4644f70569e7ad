"""Attention transfer: it learns, layer by layer, and does not care how layers are grouped."""

import math

import pytest
import torch
from trenchcoat_api.spec import KeyMaps
from trenchcoat_trainer.data import Batch
from trenchcoat_trainer.errors import DivergedError
from trenchcoat_trainer.stages.cria.plateau import Plateau
from trenchcoat_trainer.stages.cria.transfer import TransferPhase, drops_window, transfer_step
from trenchcoat_trainer.students import Heads, LossWeights
from trenchcoat_trainer.students.lolcats import naive
from trenchcoat_trainer.students.lolcats.hybrid import HybridInputs

from tests.trainer.helpers.tiny_student import ATTENTION, make_cria, make_teacher
from tests.trainer.stages.cria.cria_training import boundaries, make_spec, train_transfer

WEIGHTS = {"weights": LossWeights(mse=1000.0, xent=1.0)}


@pytest.fixture(scope="module")
def hidden():
    return boundaries()


@pytest.mark.slow
def test_one_cria_of_six_layers_gives_the_maps_of_two_of_three(hidden):
    spec = make_spec()
    _, whole, _ = train_transfer(spec, hidden, 0, 5)
    _, first, _ = train_transfer(spec, hidden, 0, 2)
    _, second, _ = train_transfer(spec, hidden, 3, 5)
    assert set(whole) == set(first) | set(second)
    for name, tensor in (first | second).items():
        assert torch.equal(tensor, whole[name]), name


def test_it_learns(hidden):
    _, _, losses = train_transfer(make_spec(), hidden, 0, 2, epochs=16)
    assert losses[-1] < 0.9 * losses[0]


def test_the_loss_and_gradient_are_the_materialised_formula(hidden):
    cria = make_cria(make_teacher(6), 2, 3)
    for parameter in cria.form_parameters().values():
        parameter.requires_grad_()
    losses = transfer_step(cria, hidden[2][:2], scale=0.5, **WEIGHTS)

    for index, (n, layer) in enumerate(cria.student_layers()):
        attention = layer.self_attn
        with torch.no_grad():
            inputs = hidden[2 + index][:2]
            q, k, v = attention.project(layer.input_layernorm(inputs), cria.rope(inputs))
        maps = [getattr(attention, name).detach().clone().requires_grad_() for name in ("w_q", "w_k")]
        factor = attention.window_factor.detach().clone().requires_grad_()
        mse, xent, _ = naive.distill_loss(HybridInputs(q, k, v, *maps, factor, 8), Heads(q, k, v))
        loss = 1000 * mse + xent
        torch.testing.assert_close(losses[index], loss.detach(), rtol=1e-5, atol=0)
        (0.5 * loss).backward()
        for name, expected in [("w_q", maps[0]), ("w_k", maps[1]), ("window_factor", factor)]:
            actual = cria.form_parameters()[f"layers.{n}.{name}"].grad
            torch.testing.assert_close(actual, expected.grad, rtol=1e-3, atol=1e-5)


def test_micro_batches_add_up_to_the_batch(hidden):
    results = []
    for micro in (1, 3, 4):
        spec = make_spec(transfer={"batchSize": 4, "plateau": {"every": 3}})
        # An epoch's last batch may be short; of a whole one, a spec would have to name a divisor.
        transfer = spec.transfer.model_copy(update={"micro_batch_size": micro})
        spec = spec.model_copy(update={"transfer": transfer})
        results.append(train_transfer(spec, hidden, 1, 1, epochs=1)[1]["layers.1.w_q"])
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=1e-4)
    torch.testing.assert_close(results[1], results[2], rtol=0, atol=1e-4)


def test_each_layer_keeps_its_own_best_maps(hidden):
    """With a rate that ruins everything after a while, the maps kept are better than the last ones."""
    spec = make_spec(transfer={"batchSize": 4, "learningRate": "3", "plateau": {"every": 3, "patience": 99}})
    cria = make_cria(make_teacher(6), 0, 1)
    phase = TransferPhase(cria, spec, steps=12)
    batch = Batch(hidden[0][:4], None)
    for step in range(12):
        phase.step(batch, epoch=0, step=step)
    last = transfer_step(cria, batch.inputs, scale=1.0, **WEIGHTS)
    maps, best = phase.finish()
    assert all(torch.equal(maps[name], parameter) for name, parameter in cria.form_parameters().items())
    for parameter in cria.form_parameters().values():
        parameter.requires_grad_()
    kept = transfer_step(cria, batch.inputs, scale=1.0, **WEIGHTS)
    assert bool((kept <= last).all()), (kept, last)
    assert math.isfinite(best)


def dropping(probability: str, **changes) -> dict:
    return {"transfer": {"batchSize": 4, "plateau": {"every": 3}, "windowDropout": probability, **changes}}


def test_window_dropout_is_a_pure_function_of_seed_epoch_and_step():
    draws = [drops_window(0.3, 1, epoch, step) for epoch in range(4) for step in range(1000)]
    assert draws == [drops_window(0.3, 1, epoch, step) for epoch in range(4) for step in range(1000)]
    assert 0.27 < sum(draws) / len(draws) < 0.33
    assert draws != [drops_window(0.3, 2, epoch, step) for epoch in range(4) for step in range(1000)]
    assert draws[:1000] != draws[1000:2000]
    assert not any(drops_window(0.0, 1, 0, step) for step in range(1000))


def test_a_step_that_drops_the_window_trains_the_maps_on_linear_attention_alone(hidden):
    cria = make_cria(make_teacher(6), 2, 3)
    for parameter in cria.form_parameters().values():
        parameter.requires_grad_()
    losses = transfer_step(cria, hidden[2][:2], scale=1.0, drop_window=True, **WEIGHTS)
    for index, (n, layer) in enumerate(cria.student_layers()):
        attention = layer.self_attn
        with torch.no_grad():
            inputs = hidden[2 + index][:2]
            q, k, v = attention.project(layer.input_layernorm(inputs), cria.rope(inputs))
        maps = [getattr(attention, name).detach().clone().requires_grad_() for name in ("w_q", "w_k")]
        x = HybridInputs(q, k, v, *maps, attention.window_factor.detach(), 8)
        mse, xent, _ = naive.distill_loss(x, Heads(q, k, v), drop_window=True)
        loss = 1000 * mse + xent
        torch.testing.assert_close(losses[index], loss.detach(), rtol=1e-5, atol=0)
        loss.backward()
        for name, expected in [("w_q", maps[0]), ("w_k", maps[1])]:
            actual = cria.form_parameters()[f"layers.{n}.{name}"].grad
            torch.testing.assert_close(actual, expected.grad, rtol=1e-3, atol=1e-5)
        assert cria.form_parameters()[f"layers.{n}.window_factor"].grad is None


@pytest.mark.slow
def test_with_window_dropout_the_linear_part_learns_more(hidden):
    def linear_loss(probability: str) -> float:
        cria, _, losses = train_transfer(make_spec(**dropping(probability)), hidden, 0, 2, epochs=12)
        assert (None in losses) == (probability != "0")
        with torch.enable_grad():
            for parameter in cria.form_parameters().values():
                parameter.requires_grad_()
            return transfer_step(cria, hidden[0], scale=1.0, drop_window=True, **WEIGHTS).mean().item()

    assert linear_loss("0.5") < 0.95 * linear_loss("0")


@pytest.mark.slow
def test_window_dropout_does_not_care_how_layers_are_grouped(hidden):
    spec = make_spec(**dropping("0.5"))
    _, whole, _ = train_transfer(spec, hidden, 0, 5)
    _, second, _ = train_transfer(spec, hidden, 3, 5)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in second.items())


def test_best_maps_are_those_of_steps_with_a_window(hidden):
    """The linear part's loss is larger: were it compared, the first check with a dropped step would lose."""
    cria = make_cria(make_teacher(6), 0, 1)
    phase = TransferPhase(cria, make_spec(**dropping("0.5", plateau={"every": 1})), steps=20)
    told = [phase.step(Batch(hidden[0][:4], None), epoch=0, step=step) for step in range(20)]
    assert told.count(None) == sum(drops_window(0.5, 0, 0, step) for step in range(20))
    assert phase.finish()[1] == pytest.approx(min(loss for loss in told if loss is not None), rel=0.05)


def test_with_no_window_in_any_step_the_last_maps_are_kept(hidden):
    probability = "0.999999999"
    cria, maps, losses = train_transfer(make_spec(**dropping(probability)), hidden, 0, 0, epochs=1)
    assert set(losses) == {None}
    assert all(torch.equal(maps[name], parameter) for name, parameter in cria.form_parameters().items())
    untrained = make_cria(make_teacher(6), 0, 0).form_parameters()
    assert not torch.equal(maps["layers.0.w_q"], untrained["layers.0.w_q"])


@pytest.mark.slow
def test_shared_key_maps_learn_and_do_not_care_how_layers_are_grouped(hidden):
    attention = ATTENTION.model_copy(update={"key_maps": KeyMaps.PER_KEY_VALUE_HEAD})
    _, whole, losses = train_transfer(make_spec(), hidden, 0, 5, epochs=16, attention=attention)
    _, second, _ = train_transfer(make_spec(), hidden, 3, 5, epochs=16, attention=attention)
    assert whole["layers.0.w_k"].shape == (2, 8, 8)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in second.items())
    assert losses[-1] < 0.9 * losses[0]


def test_layers_that_keep_softmax_are_passed_through(hidden):
    attention = ATTENTION.model_copy(update={"keep_softmax_layers": [1]})
    cria = make_cria(make_teacher(6), 0, 2, attention)
    assert [n for n, _ in cria.student_layers()] == [0, 2]
    phase = TransferPhase(cria, make_spec(), steps=3)
    for step in range(3):
        phase.step(Batch(hidden[0][:4], None), epoch=0, step=step)
    maps, _ = phase.finish()
    plain = TransferPhase(make_cria(make_teacher(6), 0, 2), make_spec(), steps=3)
    for step in range(3):
        plain.step(Batch(hidden[0][:4], None), epoch=0, step=step)
    torch.testing.assert_close(maps["layers.2.w_k"], plain.finish()[0]["layers.2.w_k"], rtol=0, atol=1e-4)


def test_a_loss_that_is_no_number_names_cria_layer_and_step(hidden):
    cria = make_cria(make_teacher(6), 0, 2)
    phase = TransferPhase(cria, make_spec(), steps=3)
    phase.step(Batch(hidden[0][:4], None), epoch=0, step=0)
    with torch.no_grad():
        cria.layers["1"].self_attn.w_q[0, 0, 0] = math.nan
    with pytest.raises(DivergedError, match=r"Cria 0: the transfer loss of layer 1 became nan at step 2"):
        phase.step(Batch(hidden[0][:4], None), epoch=0, step=1)


def test_a_loss_that_grows_beyond_the_bound_stops_the_cria(hidden):
    spec = make_spec(gates={"maxLossGrowth": "1.5"})
    phase = TransferPhase(make_cria(make_teacher(6), 0, 1), spec, steps=9)
    phase.step(Batch(hidden[0][:4], None), epoch=0, step=0)
    resumed = TransferPhase(make_cria(make_teacher(6), 0, 1), spec, steps=9)
    resumed.restore(phase.tensors(), phase.state())
    with torch.no_grad():
        resumed._cria.layers["1"].self_attn.window_factor.fill_(-40.0)
        resumed._cria.layers["1"].self_attn.w_q.mul_(-300.0)
    message = (
        r"Cria 0: the transfer loss of layer 1 grew from .* at step 2, more than spec.gates.maxLossGrowth"
    )
    with pytest.raises(DivergedError, match=message):
        resumed.step(Batch(hidden[0][:4], None), epoch=0, step=1)


def test_the_schedule_cuts_after_patience_and_stops_at_the_minimum():
    schedule = Plateau(factor=0.1, patience=1, min_rate=1e-4, rate=1e-2)
    assert [schedule.check(loss) for loss in (5.0, 4.0, 4.0)] == [True, True, False]
    assert schedule.rate == 1e-2
    schedule.check(4.0)
    assert schedule.rate == pytest.approx(1e-3)
    for _ in range(10):
        schedule.check(4.0)
    assert schedule.rate == 1e-4
    assert Plateau.restore(schedule.state()) == schedule
