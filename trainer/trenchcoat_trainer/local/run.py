"""Running all stages of a spec on this machine, in the order that their inputs allow."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from trenchcoat_api.artifacts import Artifact, Artifacts, Manifest, Progress
from trenchcoat_api.boundaries import by_stage, still_needed
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.export_gate import explain_shortfalls, holds_export, shortfalls
from trenchcoat_api.gates import excesses, explain
from trenchcoat_api.phases import may_go_without, rolls, without_adapted_teacher
from trenchcoat_api.phases import stages as stages_of
from trenchcoat_api.planning.memory import gpu_need
from trenchcoat_api.planning.model import PlannedModel
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat
from trenchcoat_api.results import Measured
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import WITHOUT_ADAPTED_TEACHER, Stage
from trenchcoat_api.summary import StageTime, Summary

from trenchcoat_trainer.errors import NotFoundError
from trenchcoat_trainer.local.display import Display
from trenchcoat_trainer.local.keeping import kept_report
from trenchcoat_trainer.local.machine import MachineSearch
from trenchcoat_trainer.local.processes import (
    SERVER_LOG,
    RunFiles,
    StageProcesses,
    StageStarter,
    all_modules,
    open_logs,
)
from trenchcoat_trainer.local.rolling import Boundaries
from trenchcoat_trainer.local.schedule import Machine, admit, least_used, ready
from trenchcoat_trainer.runtime.forking import ForkServer, wait_for_any
from trenchcoat_trainer.runtime.inputs import read_manifest
from trenchcoat_trainer.runtime.stop import StopRequest
from trenchcoat_trainer.store import Store, open_store

POLL_SECONDS = 0.2
SHOW_SECONDS = 1.0


class LocalRunError(Exception):
    """A run that cannot go on.

    Attributes:
        exit_code: What the command should exit with.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What a run leaves."""

    summary: Summary | None
    """None when the spec has no evaluation."""
    export: Path | None
    """Folder of the Hugging Face checkpoint; None when the spec has no export."""
    report: Path | None = None
    """The report; None where it could not be written."""


@dataclass(slots=True)
class _Record:
    """What happened so far."""

    started: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    most_crias: int = 0


def run_locally(
    spec_file: Path, *, store: Path, parallel_crias: int | None, console: Console, stop: StopRequest
) -> LocalResult:
    """Run every stage that is not complete in the store.

    Args:
        spec_file: The Trenchcoat in YAML.
        store: The folder that stands for the store.
        parallel_crias: Crias trained at one time, at most; None for as many as the machine takes.
        console: Where progress goes.
        stop: A wish to stop; stages then save checkpoints and end.

    Raises:
        LocalRunError: the spec cannot be read, or a stage failed; says what and the remedy.
        StageError: what stands in the store, or the machine, keeps the run from going on.
    """
    try:
        trenchcoat = Trenchcoat.from_yaml(spec_file)
    except InvalidTrenchcoatError as error:
        raise LocalRunError(str(error), ExitCode.BAD_INPUT) from error
    except OSError as error:
        raise LocalRunError(f"{spec_file} cannot be read: {error.strerror}", ExitCode.BAD_INPUT) from error
    with open_logs(store) as logs, ForkServer(all_modules(), logs / SERVER_LOG) as server:
        search = MachineSearch(server)
        starter = StageStarter(RunFiles(spec_file, store, logs), server)
        run = _LocalRun(trenchcoat.spec, starter, search, parallel_crias, stop)
        with (
            search,
            Display(console) as display,
            kept_report(trenchcoat, spec_file, store, display.warn) as report,
        ):
            run.execute(display, report.refresh)
            run.find_machine(display)  # which the summary tells of
    return LocalResult(run.summary(), run.export_folder(), report.file)


class _LocalRun:
    def __init__(
        self,
        spec: TrenchcoatSpec,
        starter: StageStarter,
        search: MachineSearch,
        parallel_crias: int | None,
        stop: StopRequest,
    ) -> None:
        self._spec = spec
        self._starter = starter
        self._files = starter.files
        self._search = search
        self._machine = Machine(gpus=0, cores=search.cores)
        self._has_machine = False
        self._parallel_crias = parallel_crias
        self._stop = stop
        self._store: Store = open_store(spec, self._files.store)
        self._record = _Record()
        self._running: dict[str, StageProcesses] = {}
        self._crias = 0
        self._arguments: dict[Stage, tuple[str, ...]] = {}
        """Of stages' programs, besides those that all have."""
        self._boundaries: Boundaries | None = None
        """Where each Cria leaves the next one's inputs; None before the number of Crias is known."""

    def execute(self, display: Display, tell: Callable[[], None]) -> None:
        """Start what can start, wait, repeat; `tell` is called again and again meanwhile."""
        self._take_complete(display)
        shown = 0.0
        try:
            while any(item.key not in self._record.manifests for item in self._wanted()):
                self._start_ready(display)
                wait_for_any(
                    chain.from_iterable(item.forked for item in self._running.values()), POLL_SECONDS
                )
                self._check_stop()
                self._gather(display)
                if time.monotonic() - shown > SHOW_SECONDS:
                    shown = time.monotonic()
                    self._show(display)
                    tell()
        finally:
            self._end_all()

    def _check_stop(self) -> None:
        if self._stop.requested:
            raise LocalRunError("stopped; the same command goes on from here", ExitCode.PREEMPTED)

    def find_machine(self, display: Display) -> None:
        """Wait, once, for what the machine has."""
        if self._has_machine:
            return
        while not self._search.is_done:
            self._check_stop()
            time.sleep(POLL_SECONDS)
        self._machine, self._has_machine = self._search.machine, True
        if self._machine.gpus == 0:
            display.warn("no GPU that can be used: computing on the CPU")

    def summary(self) -> Summary | None:
        """The numbers at the end; none when the spec has no evaluation."""
        evaluated = [m for m in self._record.manifests.values() if m.stage is Stage.EVALUATE]
        if not evaluated:
            return None
        chosen = [m.facts.selection for m in self._record.manifests.values() if m.facts.selection is not None]
        summary = Summary.from_results(
            Measured(evaluated[0].facts.perplexities, evaluated[0].facts.evaluation),
            stages=[StageTime(stage.value, self._seconds(stage)) for stage in stages_of(self._spec)],
            stored_bytes=sum(manifest.size for manifest in self._record.manifests.values()),
            crias=self._crias,
            gpus=self._machine.gpus,
            max_crias_running=self._record.most_crias,
        )
        return replace(summary, wide_layers=chosen[0].layers) if chosen else summary

    def export_folder(self) -> Path | None:
        """Where the Hugging Face checkpoint stands; none when the spec has no export."""
        exports = [artifact for artifact in self._wanted() if artifact.stage is Stage.EXPORT]
        return self._files.store / self._spec.store.bucket / exports[0].prefix if exports else None

    def _wanted(self) -> list[Artifact]:
        artifacts = Artifacts(self._spec)
        if artifacts.tokenize.key not in self._record.manifests:
            return [artifacts.tokenize]
        try:
            crias = cria_ranges(self._layers(), self._spec.layers_per_cria)
        except ValueError as error:
            raise LocalRunError(str(error), ExitCode.BAD_INPUT) from error
        self._crias = len(crias)
        wanted = artifacts.all(crias)
        there = self._record.manifests
        needed = {item.key for item in still_needed(by_stage(wanted), there)}
        return [
            item
            for item in wanted
            if item.stage is not Stage.COLLECT or item.key in needed or item.key in there
        ]

    def _layers(self) -> int:
        model = self._record.manifests[Artifacts(self._spec).tokenize.key].facts.model
        if model is None:
            raise LocalRunError("the tokenize artifact lacks the model's facts: delete it", ExitCode.FAILED)
        return model.layers

    def _take_complete(self, display: Display) -> None:
        """Take over what earlier runs left; all that is wanted is known only once the text is tokenized."""
        wanted: list[Artifact] = []
        while wanted != (wanted := self._wanted()):
            display.expect(wanted)
            for artifact in wanted:
                if artifact.key not in self._record.manifests and self._take_if_complete(artifact):
                    display.end(artifact, "complete already")

    def _take_if_complete(self, artifact: Artifact) -> bool:
        if not self._store.exists(artifact.manifest_path):
            return False
        if artifact.boundary is None:  # which goes once it is read
            self._record.manifests[artifact.key] = read_manifest(self._store, artifact)
        return True

    def _start_ready(self, display: Display) -> None:
        candidates = self._ready()
        if any(artifact.stage is Stage.STITCH for artifact in candidates):
            self._check_gate()
        candidates = [artifact for artifact in candidates if not self._is_held(artifact)]
        stages = {key: item.artifact.stage for key, item in self._running.items()}
        if any(artifact.stage is not Stage.TOKENIZE for artifact in candidates):
            self.find_machine(display)
        parallel = self._parallel()
        for artifact in admit(candidates, stages, parallel):
            workers = self._machine.workers(artifact.stage, self._spec)
            sharing = parallel if artifact.stage is Stage.CRIA else workers
            self._running[artifact.key] = self._starter.start(
                artifact,
                workers=workers,
                threads=max(1, self._machine.cores // sharing),
                gpu=self._gpu_for(artifact.stage),
                arguments=self._arguments.get(artifact.stage, ()),
            )
            self._record.started[artifact.key] = time.monotonic()
            display.expect([artifact])
            display.begin(artifact)
        running = sum(item.artifact.stage is Stage.CRIA for item in self._running.values())
        self._record.most_crias = max(self._record.most_crias, running)

    def _parallel(self) -> int:
        """Crias to train at one time."""
        asked = self._parallel_crias
        if asked is None:
            asked = self._machine.parallel_crias(self._cria_need())
        return min(asked, self._spec.scheduling.max_parallel_crias)

    def _cria_need(self) -> int:
        """Bytes that a Cria takes of a GPU; 0 where that is not known yet."""
        tokenized = self._record.manifests.get(Artifacts(self._spec).tokenize.key)
        if tokenized is None or tokenized.facts.model is None:
            return 0
        model = PlannedModel.of_facts(tokenized.facts.model, self._spec)
        need = gpu_need(Outline.of(self._spec, model, tokenized.facts.data), Stage.CRIA)
        return need.total if need is not None else 0

    def _ready(self) -> list[Artifact]:
        """What is not made and may be, as far as its inputs go."""
        complete, running = set(self._record.manifests), set(self._running)
        wanted = self._wanted()
        if not self._crias or not rolls(self._spec):
            return ready(wanted, complete, running)
        if self._boundaries is None:
            self._boundaries = Boundaries(
                self._spec, self._store, cria_ranges(self._layers(), self._spec.layers_per_cria)
            )
        there, needed = self._boundaries.look(complete)
        return [
            artifact
            for artifact in ready(self._boundaries.artifacts, complete | there, running)
            if artifact.boundary is None or artifact.key in needed
        ]

    def _gpu_for(self, stage: Stage) -> int | None:
        """Crias share the GPUs out; every other stage may use all of them."""
        if stage is not Stage.CRIA or not self._machine.gpus:
            return None
        in_use = [item.gpu for item in self._running.values() if item.gpu is not None]
        return least_used(self._machine.gpus, in_use)

    def _check_gate(self) -> None:
        crias = cria_ranges(self._layers(), self._spec.layers_per_cria)
        trained = [item for item in self._record.manifests.values() if item.stage is Stage.CRIA]
        found = excesses(self._spec, {cria.index: cria.layers for cria in crias}, trained)
        if found:
            raise LocalRunError(
                explain(self._spec, found, "remove it, to stitch all the same"), ExitCode.FAILED
            )

    def _is_held(self, artifact: Artifact) -> bool:
        """Whether it is the export and waits for the evaluation; raises where that is not good enough."""
        if artifact.stage is not Stage.EXPORT or not holds_export(self._spec):
            return False
        evaluated = [item for item in self._record.manifests.values() if item.stage is Stage.EVALUATE]
        if not evaluated:
            return True
        found = shortfalls(self._spec, evaluated[0].facts)
        if found:
            raise LocalRunError(
                explain_shortfalls(found, "remove the bound, to export all the same"), ExitCode.FAILED
            )
        return False

    def _gather(self, display: Display) -> None:
        for key, stage in list(self._running.items()):
            code = stage.poll()
            if code is None:
                continue
            del self._running[key]
            self._record.ended[key] = time.monotonic()
            if code != ExitCode.OK:
                display.end(stage.artifact, "failed", complete=False)
                if stage.artifact.stage is Stage.ADAPT and may_go_without(self._spec):
                    self._go_without(display, stage.failure(code))
                    continue
                raise LocalRunError(f"{stage.artifact.name} failed: {stage.failure(code)}", max(code, 1))
            if not self._take_if_complete(stage.artifact):
                raise LocalRunError(f"{stage.artifact.name} ended without a manifest", ExitCode.FAILED)
            display.end(stage.artifact, f"complete in {stage.seconds:.0f} s")
            if stage.artifact.stage is Stage.TOKENIZE:
                self._take_complete(display)

    def _go_without(self, display: Display, failure: str) -> None:
        """Evaluate without the adapted teacher, which could not be trained."""
        display.warn(f"the evaluation goes on without the adapted teacher: {failure}")
        self._spec, self._boundaries = without_adapted_teacher(self._spec), None
        self._arguments[Stage.EVALUATE] = (WITHOUT_ADAPTED_TEACHER,)
        self._take_complete(display)

    def _show(self, display: Display) -> None:
        for stage in self._running.values():
            try:
                report = Progress.model_validate_json(self._store.read(stage.artifact.progress_path))
            except NotFoundError:
                continue  # it has just started
            except ValidationError as error:
                raise LocalRunError(f"{stage.artifact.progress_path}: {error}", ExitCode.FAILED) from error
            display.show(stage.artifact, report)

    def _end_all(self) -> None:
        for stage in self._running.values():
            stage.stop()
        deadline = time.monotonic() + 60
        while self._running and time.monotonic() < deadline:
            self._running = {key: stage for key, stage in self._running.items() if stage.poll() is None}
            time.sleep(POLL_SECONDS)
        for stage in self._running.values():
            stage.kill()

    def _seconds(self, stage: Stage) -> float:
        """Wall time of a stage in this run; what its artifacts took when they were made earlier."""
        keys = [key for key, manifest in self._record.manifests.items() if manifest.stage is stage]
        ran = [key for key in keys if key in self._record.started]
        if not ran:
            return sum(self._record.manifests[key].seconds for key in keys)
        return max(self._record.ended[key] for key in ran) - min(self._record.started[key] for key in ran)
