"""What plans reckon with is what stages do: sizes, limits, and the sets of an evaluation."""

from pathlib import Path

import pytest
from trenchcoat_api.planning import evaluation, memory
from trenchcoat_api.planning.model import PlannedModel
from trenchcoat_api.planning.outline import Outline
from trenchcoat_trainer.checkpoints.teacher import open_teacher
from trenchcoat_trainer.data.layout import HIDDEN_BYTES
from trenchcoat_trainer.layers import llama
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.runtime import background
from trenchcoat_trainer.stages.cria import fused
from trenchcoat_trainer.stages.evaluate import recall, scores
from trenchcoat_trainer.stages.stitch.memory import Sizes
from trenchcoat_trainer.store import FolderStore

from tests.api.planning.models import NAMES, config_file, model, outline


def test_limits_are_those_of_the_stages() -> None:
    assert memory.GRAPH_BYTES == fused.GRAPH_BYTES and memory.GRAPH_LIMIT == fused.GRAPH_LIMIT
    assert memory.MLP_ROWS == llama.MLP_ROWS
    assert memory.LOGITS == scores.LOGITS
    assert memory.OBJECT == HIDDEN_BYTES
    assert memory.PENDING == background.PENDING + background.THREADS


def test_the_tests_of_recall_have_the_lengths_that_are_planned() -> None:
    before = recall.BEFORE + recall.SHIFT
    assert [probe.distances for probe in evaluation.PROBES] == [
        recall.COPY_DISTANCES,
        recall.PAIR_DISTANCES,
        recall.PAIR_DISTANCES,
        recall.PASSKEY_DISTANCES,
    ]
    assert [probe.around for probe in evaluation.PROBES[:3]] == [
        before + recall.COPIED,
        before + 2 * recall.PAIRS,
        before + recall.SCATTERED**2,
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_stitch_counts_alike(name: str) -> None:
    """What its stage decides by, before it holds graphs and weights."""
    planned = outline(name, layersPerCria=4, stitch__microBatchSize=2)
    facts = planned.facts
    config = TrenchcoatLlamaConfig(
        hidden_size=facts.hidden_size,
        num_hidden_layers=facts.layers,
        num_attention_heads=facts.heads,
        num_key_value_heads=facts.kv_heads,
        head_dim=facts.head_dim,
        intermediate_size=facts.intermediate_size,
        vocab_size=facts.vocab_size,
        tie_word_embeddings='tie_word_embeddings": true' in config_file(name).read_text(),
    )
    stage, plan = Sizes.of(planned.spec, config), memory.StitchSizes.of(planned)
    for part in ("layer", "weights", "graph", "boundary", "logits"):
        assert getattr(plan, part) == getattr(stage, part), part


def test_a_teachers_shape_is_the_same_by_its_configuration(teacher_folder: Path, make_spec) -> None:
    spec = make_spec(model={"source": f"file://{teacher_folder}"})
    teacher = open_teacher(spec, FolderStore(teacher_folder))
    planned = PlannedModel.of_config(teacher.fields, "config.json")
    assert planned.facts == teacher.facts()
    assert Outline.of(spec, planned).tokens <= spec.data.tokens
    assert model().facts.layers == 126
