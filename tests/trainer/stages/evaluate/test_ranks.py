"""Several ranks share the evaluation out: what they leave is what one leaves, byte for byte."""

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.pod_weights import Ahead, PodWeights
from trenchcoat_trainer.checkpoints.shards import read_weights
from trenchcoat_trainer.models.artifacts import load_student_config
from trenchcoat_trainer.runtime.context import Place, StageContext
from trenchcoat_trainer.runtime.host_memory import available_memory
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.runtime.sharing import Sharing
from trenchcoat_trainer.stages.evaluate import REPORT, crossing
from trenchcoat_trainer.stages.evaluate.course import Course
from trenchcoat_trainer.stages.evaluate.crossing import Ledger, Pass
from trenchcoat_trainer.stages.evaluate.saved import SavedStates
from trenchcoat_trainer.stages.evaluate.scores import score
from trenchcoat_trainer.stages.evaluate.sets import text_set
from trenchcoat_trainer.stages.evaluate.states import Begin, hold

from tests.trainer.helpers.killing import TIMEOUT, Kill, StageRunner, results
from tests.trainer.stages.conftest import change
from tests.waiting import until

EVALUATE = "trenchcoat_trainer.stages.evaluate"
IN_THE_STORE_ALONE = {f"{EVALUATE}.states.IN_MEMORY_BYTES": 0}
READS = "reads"


def noting_reads(inputs: Any, path: str, between: Any = None) -> dict[str, torch.Tensor]:
    """In place of `read_weights`: notes what of the teacher is read, by any rank."""
    with (inputs.folder / READS).open("a") as file:
        file.write(f"{path}\n")
    return read_weights(inputs, path, between)


CHECKPOINTS = "trenchcoat_trainer.checkpoints"
NOTING_READS = {
    f"{CHECKPOINTS}.{module}.read_weights": noting_reads for module in ("weights_reader", "shards")
}


@pytest.fixture(scope="module")
def spec(training_spec: TrenchcoatSpec) -> TrenchcoatSpec:
    return change(training_spec, evaluate={"batchSize": 3})


@pytest.fixture(scope="module")
def make(
    spec: TrenchcoatSpec, stitched_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., StageRunner]:
    """Makes a runner of the evaluation over a copy of the store, with settings of the program."""

    def make_it(settings: dict[str, Any]) -> StageRunner:
        folder = shutil.copytree(stitched_store, tmp_path_factory.mktemp("ranks") / "store")
        artifact = open_context(spec, Stage.EVALUATE, folder=folder).artifact
        return StageRunner(spec, artifact, folder, settings)

    return make_it


@pytest.fixture(scope="module")
def alone(make: Callable[..., StageRunner]) -> StageRunner:
    """The evaluation by one process."""
    runner = make(NOTING_READS)
    assert runner.run()[0] == [0]
    return runner


def of_one_pod(ranks: int) -> dict[str, str]:
    """The variable of so many ranks that says so."""
    return {"LOCAL_WORLD_SIZE": str(ranks)}


def reads(runner: StageRunner) -> Counter[str]:
    """How often each object of the teacher's weights was read."""
    return Counter((runner.folder / READS).read_text().split())


def report(runner: StageRunner) -> bytes:
    return runner.store.read(runner.artifact.prefix + REPORT)


def ended(runner: StageRunner, ranks: int, pod: int = 1) -> list[int | None]:
    """The exit codes of so many ranks in pods of so many, each of which ends by itself."""
    processes = runner.start(world_size=ranks, environment=of_one_pod(pod))
    for process in processes:
        process.join(TIMEOUT)
    return [process.exitcode for process in processes]


def all_but_the_second() -> int:
    """In place of `available_memory`: one rank finds no room to read ahead."""
    return 0 if os.environ["RANK"] == "1" else available_memory()


UNLIKE_MEMORY = {f"{CHECKPOINTS}.pod_weights.available_memory": all_but_the_second}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "pods", "settings"), [(3, 1, IN_THE_STORE_ALONE), (4, 2, {}), (2, 1, UNLIKE_MEMORY)]
)
def test_any_number_of_ranks_leaves_the_same_bytes(make, alone, ranks, pods, settings):
    runner = make(settings | NOTING_READS)
    codes, _ = runner.run(world_size=ranks, environment=of_one_pod(ranks // pods))
    assert codes == [0] * ranks
    # A pod reads all weights in each pass, whatever its ranks.
    assert reads(runner) == Counter({path: pods * times for path, times in reads(alone).items()})
    assert report(runner) == report(alone)
    assert results(runner.manifest()) == results(alone.manifest())
    assert not runner.leftovers()
    progress = runner.store.read(runner.artifact.progress_path).decode()
    assert '"fraction":1.0' in progress


def stopped_after_a_pass(*arguments: Any) -> None:
    """In place of `cross`: the second rank is told to end once it has carried its states of one pass."""
    crossing.cross(*arguments)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)


def failing_after_a_pass(context: StageContext, config: Any, own: Pass, source: Any, ledger: Ledger) -> None:
    """In place of `cross`: the first rank fails once it has carried its states, and another some of its."""
    crossing.cross(context, config, own, source, ledger)
    if context.rank == 0:
        batches = len(context.crias) * sum(len(states.numbers) for states in own.states.values())
        until(lambda: ledger.tell() or ledger.done > batches, TIMEOUT, "another rank is at work")
        raise RuntimeError("broken")


class StoppedBeforeACria(PodWeights):
    """In place of `PodWeights`: the second rank is told to end before it comes to a Cria with the first."""

    def cria(self, cria: CriaRange, ahead: Ahead | None = None) -> dict[str, torch.Tensor]:
        if os.environ["RANK"] == "1" and cria.index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().cria(cria, ahead)


@pytest.mark.slow
def test_killed_or_told_to_end_it_goes_on_with_another_number_of_ranks(make, alone):
    runner = make(IN_THE_STORE_ALONE)
    killing = Kill("checkpoint: half", 20)
    codes, _ = runner.run(killing, world_size=3, killed_rank=2, environment=of_one_pod(3))
    assert codes[2] == -signal.SIGKILL
    runner.settings = IN_THE_STORE_ALONE | {f"{EVALUATE}.cross": stopped_after_a_pass}
    assert ended(runner, 2, pod=2) == [ExitCode.PREEMPTED] * 2
    assert runner.leftovers() and not runner.is_complete()
    runner.settings = {}
    assert runner.run(world_size=3)[0] == [0] * 3
    assert report(runner) == report(alone)
    assert not runner.leftovers()


@pytest.mark.slow
def test_the_others_end_when_the_first_is_gone(make):
    runner = make({f"{EVALUATE}.cross": failing_after_a_pass})
    assert ended(runner, 2) == [ExitCode.FAILED] * 2
    why = [(runner.folder / f"termination-{rank}").read_text() for rank in range(2)]
    assert why[0] == "RuntimeError: broken" and why[1].startswith("the first rank is gone")
    assert not runner.is_complete()


@pytest.mark.slow
def test_the_others_of_a_pod_end_with_one_that_is_told_to(make):
    runner = make({f"{EVALUATE}.PodWeights": StoppedBeforeACria})
    assert ended(runner, 2, pod=2) == [ExitCode.PREEMPTED] * 2
    assert not runner.is_complete()


def test_a_rank_without_batches_reads_no_weights(spec, stitched_store, tmp_path, monkeypatch):
    def refuse(*_):
        pytest.fail("it reads a Cria's weights")

    monkeypatch.setattr(crossing, "cria_of_each", refuse)
    folder = shutil.copytree(stitched_store, tmp_path / "store")
    context = open_context(spec, Stage.EVALUATE, folder=folder, place=Place())
    config, text = load_student_config(context), text_set(torch.ones(4, 8, dtype=torch.int32), 1, ["teacher"])
    with SavedStates(context.checkpoint) as saved:
        begin = Begin(range(0), tokens=lambda _: pytest.fail("it embeds"), bytes=0)
        states = hold(saved, "teacher", begin, torch.ones(300, 64))
        own = Pass([text], {("teacher", text.name): states}, has_shares=False)
        ledger = Ledger(context, Sharing(context), [text], Course(None, [], context.crias, 1))
        with PodWeights(context, ledger.sharing, torch.device("cpu"), ledger.tell) as weights:
            crossing.cross(context, config, own, SimpleNamespace(weights=weights), ledger)
        head = {"model.norm.weight": torch.ones(64), "lm_head.weight": torch.ones(300, 64)}
        found = score(states, text, head, config, size=2)
    assert found.nats.dtype == torch.float64
    assert not (found.nats.any() or found.tokens.any() or found.right.any())


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 40])
def test_batches_are_dealt_evenly_and_all_of_them(ranks):
    """Three sets of a pass, one after another, as `measure` deals them."""
    dealt, found = 0, [[] for _ in range(ranks)]
    for count in (7, 1, 4):
        for rank in range(ranks):
            own = Sharing.own(SimpleNamespace(rank=rank, world_size=ranks), dealt, count)
            found[rank] += [(count, number) for number in own]
        dealt += count
    expected = [(count, number) for count in (7, 1, 4) for number in range(count)]
    assert sorted(item for own in found for item in own) == sorted(expected)
    sizes = [len(own) for own in found]
    assert max(sizes) - min(sizes) <= 1
