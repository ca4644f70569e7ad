"""The cria stage on real activations: what it leaves, and that a killed one goes on bit for bit."""

import pytest
import torch
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.shards import load_config
from trenchcoat_trainer.data import CriaData
from trenchcoat_trainer.errors import BadInputError, PreemptedError
from trenchcoat_trainer.models.student import initial_parameters, student_config
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.stages import cria as cria_stage
from trenchcoat_trainer.stages.cria.loop import LORA_COST

from tests.trainer.helpers.trainer_samples import StopAfter


def run(
    open_training, spec, index: int = 0, store: str = "store", stops: tuple[int, ...] = ()
) -> StageContext:
    """Run the stage, stopping it after each of `stops` steps and starting it again."""
    for steps in stops:
        with pytest.raises(PreemptedError):
            context = open_training(spec, Stage.CRIA, cria=index, store=store, stop=StopAfter(steps - 1))
            cria_stage.run(context)
    context = open_training(spec, Stage.CRIA, cria=index, store=store)
    cria_stage.run(context)
    return context


def results(context: StageContext) -> dict[str, torch.Tensor]:
    return {
        **context.read_tensors(context.artifact, cria_stage.FEATURE_MAPS),
        **context.read_tensors(context.artifact, cria_stage.ADAPTERS),
    }


def test_it_leaves_maps_adapters_and_losses(open_training, training_spec):
    context = run(open_training, training_spec, index=1)
    assert [item.path for item in context.manifest(context.artifact).objects] == [
        "adapters.safetensors",
        "feature_maps.safetensors",
    ]
    tensors = results(context)
    assert tensors["layers.3.w_q"].shape == (4, 16, 8)
    assert tensors["layers.3.w_q"].dtype == torch.float32
    a = "base_model.model.model.layers.2.self_attn.v_proj.lora_A.weight"
    b = "base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight"
    assert tensors[a].shape == (8, 64)
    assert tensors[b].shape == (64, 8)
    assert tensors[b].abs().max() > 0
    losses = {name: float(loss) for name, loss in context.manifest(context.artifact).facts.losses.items()}
    assert losses["transfer"] < losses["transferInitial"]
    assert losses["lora"] < losses["loraInitial"]
    errors = context.manifest(context.artifact).facts.layer_errors
    assert list(errors) == ["2", "3"]
    assert all(0 < float(error) < 1 for error in errors.values()), errors
    by_layer = context.manifest(context.artifact).facts.layer_losses
    assert list(by_layer) == ["2", "3"]
    assert all(float(after) < float(before) for before, after in by_layer.values()), by_layer
    means = [sum(float(both[place]) for both in by_layer.values()) / 2 for place in (0, 1)]
    assert means == pytest.approx([losses["transferInitial"], losses["transfer"]], rel=1e-4)
    assert not context.store.exists(context.artifact.checkpoint_prefix + "state.safetensors")


def test_what_is_told_as_done_counts_sequences_whatever_the_batch_sizes(
    open_training, training_spec, change, monkeypatch: pytest.MonkeyPatch
):
    """A LoRA batch of twice the sequences counts twice as much, so that the same share takes as long."""
    told: list[tuple[str, float]] = []
    sizes = {"transfer": 2, "criaLora": 4}
    of_phases = {name: {"epochs": 1, "batchSize": size, "microBatchSize": 2} for name, size in sizes.items()}
    context = open_training(change(training_spec, **of_phases), Stage.CRIA, cria=1, store="shares")
    update = context.progress.update

    def note(phase: str, *args: object, fraction: float, **more: object) -> None:
        told.append((phase, fraction))
        update(phase, *args, fraction=fraction, **more)

    monkeypatch.setattr(context.progress, "update", note)
    cria_stage.run(context)
    assert told[-1][1] == pytest.approx(1.0)
    transferred = max(fraction for phase, fraction in told if phase == "transfer")
    assert transferred == pytest.approx(1 / (1 + LORA_COST[context.spec.cria_lora.objective]))


@pytest.mark.parametrize("objective", ["layerwise", "block"])
@pytest.mark.parametrize("index", [0, 2])
def test_killed_at_any_step_it_ends_with_the_same_maps_and_adapters(
    open_training, training_spec, change, objective, index
):
    spec = change(training_spec, criaLora={"objective": objective})
    undisturbed = run(open_training, spec, index)
    # In transfer, at its very end, in LoRA twice: 1, then 6, then 10 is transfer's last, then 13 and 14.
    killed = run(open_training, spec, index, store="killed", stops=(1, 5, 4, 3, 1))
    whole, pieces = results(undisturbed), results(killed)
    assert set(whole) == set(pieces)
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    facts = [context.manifest(context.artifact).facts for context in (undisturbed, killed)]
    assert facts[0].layer_errors == facts[1].layer_errors != {}
    assert facts[0].layer_losses == facts[1].layer_losses != {}


@pytest.mark.slow
def test_killed_with_window_dropout_it_ends_with_the_same_maps(open_training, training_spec, change):
    spec = change(training_spec, transfer={"windowDropout": "0.5", "epochs": 3})
    context = run(open_training, spec, index=1)
    whole = results(context)
    # Into the very first steps, of which some drop the window, and so have no state of the window's factor.
    pieces = results(run(open_training, spec, 1, store="killed", stops=(1, 1, 2, 3)))
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    plain = results(run(open_training, change(training_spec, transfer={"epochs": 3}), 1, store="plain"))
    assert not torch.equal(whole["layers.2.w_q"], plain["layers.2.w_q"])
    losses = context.manifest(context.artifact).facts.losses
    assert float(losses["transfer"]) < float(losses["transferInitial"])


def test_no_epochs_leave_what_was_there_before_training(open_training, training_spec, change, monkeypatch):
    monkeypatch.setattr(cria_stage, "choose_device", lambda _: pytest.fail("it needs none"))
    spec = change(training_spec, transfer={"epochs": 0}, criaLora={"epochs": 0})
    context = run(open_training, spec, index=2)
    tensors = results(context)
    config = student_config(load_config(context), spec.attention)
    assert torch.equal(tensors["layers.4.w_k"], initial_parameters(config, 4, seed=0)["w_k"])
    assert tensors["layers.4.w_k"].dtype == torch.float32
    b = tensors["base_model.model.model.layers.4.self_attn.q_proj.lora_B.weight"]
    assert b.abs().max() == 0 and b.dtype == torch.float32
    assert context.manifest(context.artifact).facts.losses == {}


@pytest.mark.parametrize("objective", ["layerwise", "block"])
def test_a_window_has_no_transfer_and_its_adapters_go_on_after_a_kill(
    open_training, training_spec, change, objective
):
    wide = {"layers": [3], "window": 24}
    spec = change(
        training_spec,
        attention={"form": "window", "window": 8, "wide": wide},
        criaLora={"objective": objective},
    )
    context = run(open_training, spec, index=1)
    facts = context.manifest(context.artifact).facts
    assert set(facts.losses) == {"loraInitial", "lora"}
    assert float(facts.losses["lora"]) < float(facts.losses["loraInitial"])
    narrow, wider = (float(facts.layer_errors[layer]) for layer in ("2", "3"))
    assert 0 < narrow < 1 and 0 < wider < 1
    assert facts.layer_losses == {}  # transfer has nothing to train
    whole = results(context)
    assert whole and all("lora" in name for name in whole), "there are no feature maps"
    pieces = results(run(open_training, spec, 1, store="killed", stops=(1, 2)))
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


@pytest.mark.parametrize("objective", ["layerwise", "block"])
def test_a_cria_that_keeps_softmax_attention_is_done_at_once(
    open_training, training_spec, change, objective, monkeypatch
):
    spec = change(training_spec, attention={"keepSoftmaxLayers": [2, 3]}, criaLora={"objective": objective})
    monkeypatch.setattr(CriaData, "batches", lambda *_, **__: pytest.fail("there is nothing to train"))
    context = run(open_training, spec, index=1)
    assert not [name for name in results(context) if name.endswith("w_q")]
    changed = [tensor for name, tensor in results(context).items() if "lora_B" in name]
    assert changed and not any(tensor.any() for tensor in changed)
    assert context.manifest(context.artifact).facts.losses == {}


def test_a_softmax_layer_that_does_not_exist_is_bad_input(open_training, training_spec, change):
    spec = change(training_spec, attention={"keepSoftmaxLayers": [7]})
    with pytest.raises(BadInputError, match="keepSoftmaxLayers has 7"):
        run(open_training, spec)
