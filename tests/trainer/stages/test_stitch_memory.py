"""What the stitch holds in memory: by sizes that are known, and changing nothing of what is computed."""

from dataclasses import replace

import pytest
import torch
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.runtime.training import Cursor
from trenchcoat_trainer.stages.stitch import alone, zero
from trenchcoat_trainer.stages.stitch.batches import StitchData
from trenchcoat_trainer.stages.stitch.memory import Held, Sizes, decide, layer_parameters
from trenchcoat_trainer.stages.stitch.subject import Subject

CPU = torch.device("cpu")
EVERY_MODULE = {"leaf_module": {"classes": []}}


@pytest.fixture
def llama_405b() -> TrenchcoatLlamaConfig:
    return TrenchcoatLlamaConfig(
        hidden_size=16384,
        intermediate_size=53248,
        num_hidden_layers=126,
        num_attention_heads=128,
        num_key_value_heads=8,
        vocab_size=128256,
        window=64,
        feature_dim=64,
    )


def test_sizes_are_those_of_llama_405b(llama_405b, make_spec):
    spec = make_spec(dtype="bfloat16", data={"sequenceLength": 1024, "tokens": 1024, "heldOutTokens": 1024})
    sizes = Sizes.of(spec, llama_405b)
    assert sizes.layer == pytest.approx(6.38e9, rel=0.01)
    assert sizes.weights == pytest.approx(812e9, rel=0.01)
    assert layer_parameters(llama_405b) * 2 == sizes.layer


def test_405b_over_24_gpus_holds_neither_graph_nor_weights(llama_405b, make_spec):
    spec = make_spec(dtype="bfloat16", data={"sequenceLength": 1024, "tokens": 1024, "heldOutTokens": 1024})
    assert decide(Sizes.of(spec, llama_405b), 79e9, 24) == Held(graph=False, weights=False)


def test_it_counts_on_the_longest_sequences(llama_405b, make_spec):
    def sizes(**settings):
        data = {"sequenceLength": 1024, "tokens": 1024, "heldOutTokens": 1024}
        return Sizes.of(make_spec(dtype="bfloat16", data=data, stitch=settings), llama_405b)

    long = {"share": "0.25", "multiple": 4}
    plain, four = sizes(), sizes(longSequences=long)
    assert (four.graph, four.logits, four.boundary) == (4 * plain.graph, 4 * plain.logits, 4 * plain.boundary)
    assert (four.layer, four.weights) == (plain.layer, plain.weights)
    assert sizes(longSequences=long | {"share": "0"}) == plain
    # One long sequence in place of six others, in place of eight two.
    assert sizes(batchSize=24, microBatchSize=6, longSequences=long).graph == 6 * plain.graph
    assert sizes(microBatchSize=8, longSequences=long).graph == 8 * plain.graph
    assert sizes(microBatchSize=2, longSequences=long).graph == 4 * plain.graph


def test_more_memory_never_holds_less(llama_405b, make_spec):
    spec = make_spec(dtype="bfloat16", data={"sequenceLength": 1024, "tokens": 1024, "heldOutTokens": 1024})
    small = replace(Sizes.of(spec, llama_405b), layers=12, weights=80_000_000_000)
    held = [decide(small, gigabytes * 1e9, 8) for gigabytes in range(0, 400, 5)]
    graphs, weights = [item.graph for item in held], [item.weights for item in held]
    assert graphs == sorted(graphs) and graphs[0] != graphs[-1]
    assert weights[0] != weights[-1]


@pytest.mark.slow
def test_the_losses_are_the_same_however_it_is_held(open_training, training_spec, change):
    # Clipping is off: its norm sums gradients in the order in which they come, which depends on the hooks.
    spec = change(training_spec, stitch={"microBatchSize": 2, "clip": "0", "lora": {"dropout": "0.2"}})
    ways = [(Held(graph, weights), {}) for graph in (True, False) for weights in (True, False)]
    ways += [(Held(graph, weights=False), EVERY_MODULE) for graph in (True, False)]
    of_several = [
        losses(context, zero.open_engine(context, Subject.of(context), held, CPU, {}, changes))
        for held, changes in ways
        for context in (open_training(spec, Stage.STITCH),)
    ]
    of_one = [
        losses(context, alone.open_engine(context, Subject.of(context), Held(graph, True), CPU, {}))
        for graph in (True, False)
        for context in (open_training(spec, Stage.STITCH),)
    ]
    by_layer, by_module = of_several[:-2], of_several[-2:]
    assert by_layer == [by_layer[0]] * 4
    # Module by module weights lie elsewhere in memory, and by that MKL chooses its kernels on some processors
    # (AVX2 without AVX-512, unless MKL_CBWR=COMPATIBLE).
    assert by_module == [pytest.approx(by_layer[0], rel=1e-6)] * 2
    assert of_one == [of_one[0]] * 2
    assert of_one[0] == pytest.approx(of_several[0], rel=1e-6)


def losses(context, opened) -> list[float]:
    """The losses of a few steps."""
    cursor, found, rate = Cursor(), [], float(context.spec.stitch.learning_rate)
    with opened as engine:
        for batch in StitchData(context, Subject.of(context).config, epochs=1).batches(0):
            found.append(engine.step(batch, cursor, rate=rate).item())
            cursor.note(found[-1])
    return found
