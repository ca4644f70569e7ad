"""Stitching: the result of plain training, whatever the number of ranks, resumable, free of compilation."""

import shutil

import pytest
import torch
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.shards import load_rest_weights
from trenchcoat_trainer.data import LengtheningData, Schedule, Starts, TokenData
from trenchcoat_trainer.errors import PreemptedError
from trenchcoat_trainer.models.adapters import inject_adapters
from trenchcoat_trainer.models.artifacts import (
    cria_adapters,
    layer_weights,
    load_student_config,
    stitch_adapters,
    trained_parameters,
)
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.stages import cria, shard, stitch, tokenize
from trenchcoat_trainer.stages.stitch.batches import StitchData
from trenchcoat_trainer.stages.stitch.course import Course
from trenchcoat_trainer.stages.stitch.engine import next_token_loss
from trenchcoat_trainer.stages.stitch.recall import IGNORED

from tests.trainer.helpers.killing import StageRunner
from tests.trainer.helpers.trainer_samples import StopAfter, make_config, save_teacher

pytestmark = pytest.mark.slow

SETTINGS = {"epochs": 2, "batchSize": 8, "microBatchSize": 1, "clip": "0.5"}
SELDOM = {"trenchcoat_trainer.stages.stitch.CHECKPOINT_SECONDS": stitch.CHECKPOINT_SECONDS}
"""Ranks that leave as few checkpoints as they do by themselves."""


@pytest.fixture
def spec(training_spec, change):
    return change(training_spec, stitch=SETTINGS)


def cria_weights(context, part, *adapters) -> dict[str, torch.Tensor]:
    """The weights of a whole Cria, adapters merged in."""
    return {k: v for layer in part.layers for k, v in layer_weights(context, part, layer, *adapters).items()}


def plain_batches(context) -> list[list[torch.Tensor]]:
    """Token ids of every step of every epoch."""
    settings = context.spec.stitch
    return [
        list(TokenData(context).batches(epoch=epoch, batch_size=settings.batch_size))
        for epoch in range(settings.epochs)
    ]


def train_plainly(context, starts: Starts | None = None, batches=None) -> dict[str, torch.Tensor]:
    """The same training in a few lines, without DeepSpeed.

    From `starts` and on `batches` where they are not the spec's; longer sequences are micro-batches of one.
    """
    settings = context.spec.stitch
    config = load_student_config(context)
    rest = load_rest_weights(context)
    rest.setdefault("lm_head.weight", rest["model.embed_tokens.weight"])  # absent when tied
    model = torch.nn.ModuleList(
        CriaModel.build(
            config,
            part,
            cria_weights(context, part, cria_adapters(context, part)),
            trained_parameters(context, part),
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        for part in context.crias
    )
    adapters = inject_adapters(model, settings.lora, seed=context.spec.seed, purpose="stitch")
    adamw = torch.optim.AdamW(adapters.values(), lr=float(settings.learning_rate), weight_decay=0.0)
    starts = starts or Starts.of(context.spec, config)
    for epoch, steps in enumerate(batches or plain_batches(context)):
        for step, tokens in enumerate(steps):
            longer = tokens.shape[1] - context.spec.data.sequence_length
            own = starts.of_longer(longer)
            for index, micro in enumerate(tokens.split(1 if longer else settings.micro_batch_size)):
                hidden = torch.nn.functional.embedding(micro, rest["model.embed_tokens.weight"])
                for part in model:
                    hidden = part(hidden, own.start("stitch", epoch, step, index))
                hidden = torch.nn.functional.rms_norm(
                    hidden, hidden.shape[-1:], rest["model.norm.weight"], config.rms_norm_eps
                )
                logits = hidden @ rest["lm_head.weight"].T
                (next_token_loss(logits, micro) * len(micro) / len(tokens)).backward()
            if float(settings.clip):
                torch.nn.utils.clip_grad_norm_(adapters.values(), float(settings.clip))
            adamw.step()
            adamw.zero_grad()
    return {name: parameter.detach() for name, parameter in adapters.items()}


def assert_alike(actual, expected) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=2e-4, msg=name)


def test_it_trains_what_plain_training_does(open_training, spec):
    context = open_training(spec, Stage.STITCH)
    stitch.run(context)
    adapters = stitch_adapters(context)[0]
    assert adapters["base_model.model.model.layers.4.self_attn.o_proj.lora_B.weight"].abs().max() > 1e-3
    assert_alike(adapters, train_plainly(context))
    losses = {name: float(loss) for name, loss in context.manifest(context.artifact).facts.losses.items()}
    assert losses["stitch"] < losses["stitchInitial"]


def test_at_random_positions_it_trains_what_plain_training_does(open_training, spread_spec, change):
    context = open_training(change(spread_spec, stitch=SETTINGS), Stage.STITCH, trained="spread_store")
    stitch.run(context)
    adapters = stitch_adapters(context)[0]
    assert_alike(adapters, train_plainly(context))
    name = "base_model.model.model.layers.4.self_attn.o_proj.lora_B.weight"
    at_0 = train_plainly(context, Starts())[name]
    assert (adapters[name] - at_0).abs().max() > 1e-3


def joined_batches(context, long: int) -> list[list[torch.Tensor]]:
    """What one epoch reads, of which the last `long` steps are long; the tokens are worked out from text."""
    settings, length = context.spec.stitch, context.spec.data.sequence_length
    multiple = settings.long_sequences.multiple
    schedule = Schedule(
        sequences=TokenData(context).sequences,
        batch_size=settings.batch_size,
        epochs=1,
        share=float(settings.long_sequences.share),
        multiple=multiple,
    )
    batches = list(LengtheningData(TokenData(context), schedule, context.spec.seed).batches(0))
    assert [batch.shape[1] // length for batch in batches] == [1] * (len(batches) - long) + [multiple] * long
    return [batches]


LONG = {"epochs": 1, "batchSize": 4, "longSequences": {"share": "0.4", "multiple": 2}}
"""Of 5 steps the last 2."""


@pytest.mark.parametrize(("micro_batch", "clip"), [(1, "0"), (2, "0.5")])
def test_on_longer_sequences_at_the_end_it_trains_what_plain_training_does(
    open_training, spread_spec, change, micro_batch, clip
):
    """Two micro-batches in the steps of longer sequences, four or two in the others.

    Unclipped, for clipping would hide losses that are scaled otherwise in one kind of step than in the other.
    """
    own = LONG | {"microBatchSize": micro_batch, "clip": clip}
    context = open_training(change(spread_spec, stitch=SETTINGS | own), Stage.STITCH, trained="spread_store")
    stitch.run(context)
    adapters = stitch_adapters(context)[0]
    assert_alike(adapters, train_plainly(context, batches=joined_batches(context, 2)))
    name = "base_model.model.model.layers.4.self_attn.o_proj.lora_B.weight"
    assert (adapters[name] - train_plainly(context)[name]).abs().max() > 1e-3


def test_recall_spans_the_longer_sequences(open_training, spread_spec, change):
    long = {"share": "0.4", "multiple": 4}
    spec = change(spread_spec, stitch={"batchSize": 4, "recallShare": "0.9", "longSequences": long})
    context = open_training(spec, Stage.STITCH, trained="spread_store")
    *_, last = StitchData(context, load_student_config(context), epochs=1).batches(0)
    (micro,) = last.micro_batches
    assert micro.tokens.shape == (1, 4 * 64)
    (tokens,), (labels,) = micro.tokens, micro.labels
    (text,) = joined_batches(context, 2)[0][-1]
    asked = ((tokens != text) & (labels != IGNORED)).nonzero()[:, 0]
    first = [
        distance
        for distance in range(64, int(asked[0]))
        if torch.equal(tokens[asked], tokens[asked - distance])
        and (labels[asked - distance] == IGNORED).all()
    ]
    assert first and len(asked) > 4


def test_longer_sequences_than_the_teacher_has_positions_are_as_long_as_fit(
    open_training, spread_spec, change, caplog
):
    """The teacher has 256, a sequence 64 tokens."""
    long = {"share": "0.4", "multiple": 8}
    spec = change(spread_spec, stitch={"epochs": 1, "batchSize": 8, "longSequences": long})
    context = open_training(spec, Stage.STITCH, trained="spread_store")
    data = StitchData(context, load_student_config(context), epochs=1)
    assert data.multiple == 4
    *_, last = data.batches(0)
    assert [micro.tokens.shape for micro in last.micro_batches] == [(1, 256)] * 2
    course = Course.of(context, data, 1, on_gpu=False)
    assert (course.steps, course.long_steps) == (data.steps, data.long_steps)
    assert course.long_steps and course.long_cost > 0
    stitch.run(context)
    assert "longSequences.multiple is 8, which is past the positions" in caplog.text
    assert "it is taken as 4" in caplog.text


def whole_and_stopped(open_training, spec, stops):
    """A run in one piece and one stopped after so many steps each time: with the same adapters."""
    whole = open_training(spec, Stage.STITCH, trained="spread_store")
    stitch.run(whole)
    for steps in stops:
        stop = StopAfter(steps - 1)
        with pytest.raises(PreemptedError):
            stitch.run(open_training(spec, Stage.STITCH, store="stopped", trained="spread_store", stop=stop))
    stopped = open_training(spec, Stage.STITCH, store="stopped", trained="spread_store")
    stitch.run(stopped)
    expected = stitch_adapters(whole)[0]
    for name, tensor in stitch_adapters(stopped)[0].items():
        assert torch.equal(tensor, expected[name]), name
    return whole, stopped


def test_stopped_around_the_first_longer_sequences_it_ends_with_the_same_adapters(
    open_training, spread_spec, change
):
    own = LONG | {"lora": {"dropout": "0.2"}, "recallShare": "0.9"}
    spec = change(spread_spec, stitch=SETTINGS | own)
    # Before the last short one, at the switch, within the long ones.
    runs = whole_and_stopped(open_training, spec, (2, 1, 1))
    facts = [run.manifest(run.artifact).facts for run in runs]
    assert facts[0].recall == facts[1].recall
    assert facts[0].losses == facts[1].losses


def test_stopped_and_started_again_it_ends_with_the_same_adapters(open_training, spread_spec, change):
    own = {"lora": {"dropout": "0.2"}, "microBatchSize": 2, "recallShare": "0.6"}
    spec = change(spread_spec, stitch=SETTINGS | own)
    runs = whole_and_stopped(open_training, spec, (1, 3))
    recall = [run.manifest(run.artifact).facts.recall for run in runs]
    assert recall[0] == recall[1]
    # Sequences of 64 tokens seldom have room for one.
    assert 0 < recall[0].sequences == recall[0].spans + recall[0].facts
    assert recall[0].asked < recall[0].tokens / 2


@pytest.mark.parametrize("own", [{}, {"batchSize": 6, "longSequences": {"share": "0.5", "multiple": 2}}])
def test_two_ranks_train_the_same(open_training, spread_spec, change, tmp_path, own):
    """With what a PyTorchJob tells them: one process each, without LOCAL_RANK; 3 micro-batches for 2 ranks.

    With longer sequences 3 micro-batches of a step stand beside 6 of another.
    """
    spec = change(spread_spec, stitch=SETTINGS | {"batchSize": 3, "epochs": 1, "recallShare": "0.6"} | own)
    alone = open_training(spec, Stage.STITCH, trained="spread_store")
    stitch.run(alone)

    context = open_training(spec, Stage.STITCH, store="two", trained="spread_store")
    runner = StageRunner(spec, context.artifact, tmp_path / "two", SELDOM)
    assert runner.run(world_size=2, environment={"CXX": "/bin/false"})[0] == [0, 0], logs(runner)
    assert_alike(stitch_adapters(context)[0], stitch_adapters(alone)[0])


def logs(runner: StageRunner) -> list[str]:
    return [file.read_text() for file in runner.folder.glob("termination-*")]


def test_with_tied_embeddings_ranks_train_what_plain_training_does(
    open_training, spread_spec, change, tmp_path
):
    """The embedding is the head, too; ZeRO-3 partitions the one parameter that both are."""
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    save_teacher(teacher, make_config(tie_word_embeddings=True))
    spec = change(spread_spec, model={"source": teacher.as_uri()}, stitch=SETTINGS | {"epochs": 1})
    (tmp_path / "made").mkdir()  # anew: no other store has this teacher
    for stage in (tokenize, shard):
        stage.run(open_training(spec, Stage(stage.__name__.rsplit(".", 1)[1]), store="made"))
    for index in range(3):
        cria.run(open_training(spec, Stage.CRIA, store="made", cria=index))
    shutil.copytree(tmp_path / "made", tmp_path / "two")

    alone = open_training(spec, Stage.STITCH, store="made")
    assert "lm_head.weight" not in load_rest_weights(alone)
    stitch.run(alone)
    expected = train_plainly(alone)
    assert expected["base_model.model.model.layers.4.self_attn.o_proj.lora_B.weight"].abs().max() > 1e-3
    assert_alike(stitch_adapters(alone)[0], expected)

    two = open_training(spec, Stage.STITCH, store="two")
    runner = StageRunner(spec, two.artifact, tmp_path / "two", SELDOM)
    assert runner.run(world_size=2)[0] == [0, 0], logs(runner)
    assert_alike(stitch_adapters(two)[0], expected)


def test_no_epochs_leave_adapters_that_change_nothing(open_training, training_spec, change):
    context = open_training(change(training_spec, stitch={"epochs": 0}), Stage.STITCH)
    stitch.run(context)
    adapters = stitch_adapters(context)[0]
    assert len(adapters) == 5 * 4 * 2
    assert all(tensor.abs().max() == 0 for name, tensor in adapters.items() if "lora_B" in name)
