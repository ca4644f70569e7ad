"""A run as its artifacts tell it: manifests of what is complete, progress of what is not."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from trenchcoat_api.artifacts import Artifact, Artifacts, Manifest, Progress
from trenchcoat_api.crias import CriaRange, cria_ranges
from trenchcoat_api.gates import worst_layer
from trenchcoat_api.history import Seen
from trenchcoat_api.phases import stages as stages_of
from trenchcoat_api.phases import without_adapted_teacher
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import INPUTS, Stage
from trenchcoat_api.status import (
    Condition,
    ConditionType,
    CriaStatus,
    Source,
    StageStatus,
    State,
    TrenchcoatStatus,
)
from trenchcoat_api.texts import percent, timestamp
from trenchcoat_report.run import LayerFigures, Manner, Run, Sample

from trenchcoat_trainer.errors import MissingInputError, NotFoundError
from trenchcoat_trainer.reporting.places import ReportPlace, read_history
from trenchcoat_trainer.runtime.inputs import read_manifest
from trenchcoat_trainer.store import Store

FRESH = timedelta(minutes=2)
"""After so long without news a stage that reported progress is not taken to be running."""
EVALUATION = "report.json"
SHARES = ("shareOutsideWindowByLayer", "linearShareByLayer")
"""The latter by versions that knew form lolcats alone."""
_PROGRAMS = ("trenchcoat", "torch", "transformers", "peft", "deepspeed")
_LOSSES = {Stage.STITCH: "stitch", Stage.ADAPT: "adapt"}


@dataclass(kw_only=True)
class Gatherer:
    """Reads one run from a store; what is complete is read once."""

    trenchcoat: Trenchcoat
    store: Store
    folder: Path | None = None
    """The folder that stands for the store, where one does."""
    spec_file: str = ""
    """What the run was started from, for people."""
    _manifests: dict[str, Manifest] = field(default_factory=dict)
    _evaluation: dict[str, Any] | None = None

    def complete(self) -> set[str]:
        """Keys of the wanted artifacts that are complete.

        Raises:
            StoreError: the store cannot be used.
            CorruptObjectError: a manifest cannot be read.
        """
        known: set[str] = set()
        while True:  # all that is wanted is known only once tokenize is complete
            found = {item.key for item in self._wanted() if self._manifest(item) is not None}
            if found == known:
                return found
            known = found

    def gather(self, began: datetime | None, *, failure: str = "") -> Run:
        """The run as it is now.

        Args:
            began: when it was first started; None where that is not known: when its first stage began.
            failure: what ended it, if anything did.

        Raises:
            StoreError: the store cannot be used.
            CorruptObjectError: a manifest cannot be read.
        """
        self.complete()
        wanted, now = self._wanted(), datetime.now(UTC)
        if began is None:
            found = [self._manifests[item.key].started_at for item in wanted if item.key in self._manifests]
            began = min([*found, now])
        rows = [_Row(item, self._manifests.get(item.key), self._progress(item)) for item in wanted]
        status = self._status(rows, began, now)
        return Run(
            trenchcoat=self.trenchcoat.model_copy(update={"status": status}),
            layers=self._layers(rows),
            samples=self._samples(rows),
            curves={
                row.artifact.name: row.curve for row in rows if row.artifact.stage in _LOSSES and row.curve
            },
            began=began,
            told_at=now,
            manner=Manner.CLUSTER if self.folder is None else Manner.LOCAL,
            store=self.store.name if self.folder is None else str(self.folder),
            spec_file=self.spec_file,
            failure=failure,
            versions=_versions(),
        )

    def _wanted(self) -> list[Artifact]:
        artifacts, tokenize = Artifacts(self.trenchcoat.spec), None
        tokenize = self._manifests.get(artifacts.tokenize.key)
        if tokenize is None or tokenize.facts.model is None:
            return artifacts.before_crias
        crias = cria_ranges(tokenize.facts.model.layers, self.trenchcoat.spec.layers_per_cria)
        wanted = artifacts.all(crias)
        # Where the adapted teacher could not be trained, the evaluation is that of a spec without it.
        lesser = Artifacts(without_adapted_teacher(self.trenchcoat.spec))
        evaluation = artifacts.evaluate(crias)
        if evaluation in wanted and self._manifest(evaluation) is None:
            without = lesser.evaluate(crias)
            if without.key != evaluation.key and self._manifest(without) is not None:
                return [item for item in lesser.all(crias)]
        return wanted

    def _manifest(self, artifact: Artifact) -> Manifest | None:
        if artifact.key not in self._manifests:
            try:
                self._manifests[artifact.key] = read_manifest(self.store, artifact).folded()
            except MissingInputError:
                return None
        return self._manifests[artifact.key]

    def _progress(self, artifact: Artifact) -> Progress | None:
        if artifact.key in self._manifests:
            return None
        try:
            return Progress.model_validate_json(self.store.read(artifact.progress_path))
        except (NotFoundError, ValidationError):
            return None  # it has not begun, or is told of in the words of another version

    def _status(self, rows: Sequence["_Row"], began: datetime, now: datetime) -> TrenchcoatStatus:
        by_stage: dict[Stage, list[_Row]] = {}
        for row in rows:
            by_stage.setdefault(row.artifact.stage, []).append(row)
        complete = {stage for stage, its in by_stage.items() if all(row.manifest for row in its)}
        wanted = [stage for stage in stages_of(self.trenchcoat.spec) if stage in by_stage or stage in _LATER]
        told: dict[Stage, dict[str, Any]] = {}
        history = read_history(self.store, ReportPlace.of(self.trenchcoat).history_path)
        crias = []
        for stage in wanted:
            inputs = [other for other in INPUTS[stage] if other in wanted and other not in complete]
            fields = [
                with_history(
                    row.fields(self._place(row.artifact), began, now, inputs),
                    history.rows.get(row.artifact.key),
                )
                for row in by_stage.get(stage, [])
            ]
            if stage is Stage.CRIA:
                crias = [_cria(row, its) for row, its in zip(by_stage.get(stage, []), fields, strict=True)]
            told[stage] = fields[0] if len(fields) == 1 else _together(fields, inputs)
        running = [stage.value for stage in wanted if told[stage]["state"] is State.RUNNING]
        share = sum(row.fraction for row in rows) / max(len(rows), 1) if by_stage.get(Stage.CRIA) else 0.0
        facts = [row.manifest.facts for row in rows if row.manifest is not None]
        done = bool(by_stage.get(Stage.CRIA)) and complete >= set(wanted)
        exported = [row.artifact for row in by_stage.get(Stage.EXPORT, []) if row.manifest is not None]
        return TrenchcoatStatus(
            stage="Complete" if done else ", ".join(running),
            crias_done=f"{sum(row.manifest is not None for row in by_stage.get(Stage.CRIA, []))}"
            f"/{len(by_stage.get(Stage.CRIA, []))}",
            progress=percent(1.0 if done else share),
            stored_bytes=sum(row.manifest.size for row in rows if row.manifest is not None),
            export_uri=self._place(exported[0]) if exported else "",
            model=next((item.model for item in facts if item.model is not None), None),
            data=next((item.data for item in facts if item.data is not None), None),
            selection=next((item.selection for item in facts if item.selection is not None), None),
            conditions=[
                Condition(
                    type=ConditionType.SUCCEEDED,
                    status="True" if done else "False",
                    reason="Complete" if done else "InProgress",
                    last_transition_time=timestamp(now),
                )
            ],
            stages=[StageStatus(name=stage.value, **told[stage]) for stage in wanted],
            crias=crias,
            perplexities=next((item.perplexities for item in facts if item.perplexities), []),
            evaluation=next((item.evaluation for item in facts if item.evaluation is not None), None),
        )

    def _place(self, artifact: Artifact) -> str:
        if self.folder is not None:
            return str(self.folder / self.trenchcoat.spec.store.bucket / artifact.prefix)
        return f"s3://{self.trenchcoat.spec.store.bucket}/{artifact.prefix}"

    def _layers(self, rows: Iterable["_Row"]) -> list[LayerFigures]:
        errors: dict[int, str] = {}
        losses: dict[int, list[str]] = {}
        shares: Mapping[str, float] = {}
        for row in rows:
            if row.manifest is None:
                continue
            errors |= {int(layer): error for layer, error in row.manifest.facts.layer_errors.items()}
            losses |= {int(layer): both for layer, both in row.manifest.facts.layer_losses.items()}
            if row.artifact.stage is Stage.EVALUATE:
                report = self._read_evaluation(row.artifact)
                shares = next((report[name] for name in SHARES if name in report), {})
        measured = sorted({*errors, *losses, *map(int, shares)})
        return [
            LayerFigures(
                layer=layer,
                error=errors.get(layer, ""),
                losses=losses.get(layer, []),
                outside=f"{shares[str(layer)]:.4f}" if str(layer) in shares else "",
            )
            for layer in measured
        ]

    def _samples(self, rows: Iterable["_Row"]) -> list[Sample]:
        complete = (row for row in rows if row.manifest is not None)
        found = next((row for row in complete if row.artifact.stage is Stage.EVALUATE), None)
        told = self._read_evaluation(found.artifact).get("samples", []) if found is not None else []
        return [Sample.model_validate(item) for item in told]  # none by versions that took none

    def _read_evaluation(self, artifact: Artifact) -> dict[str, Any]:
        if self._evaluation is None:
            self._evaluation = json.loads(self.store.read(artifact.prefix + EVALUATION))
        return self._evaluation


_LATER = (Stage.CRIA, Stage.STITCH, Stage.ADAPT, Stage.EVALUATE, Stage.EXPORT)
"""Stages of which no artifact is known before the model is."""


@dataclass(frozen=True, slots=True)
class _Row:
    """An artifact, as far as it is."""

    artifact: Artifact
    manifest: Manifest | None
    progress: Progress | None

    @property
    def fraction(self) -> float:
        if self.manifest is not None:
            return 1.0
        return self.progress.fraction if self.progress is not None else 0.0

    @property
    def curve(self) -> list[str]:
        if self.manifest is not None:
            return self.manifest.facts.curve
        return self.progress.curve if self.progress is not None else []

    @property
    def losses(self) -> dict[str, str]:
        if self.manifest is not None:
            return self.manifest.facts.losses
        return self.progress.losses if self.progress is not None else {}

    def fields(self, place: str, began: datetime, now: datetime, missing: Sequence[Stage]) -> dict[str, Any]:
        """Those of a row of the status; `missing` are the stages that it waits for."""
        told: dict[str, Any] = {"key": self.artifact.key, "progress": percent(self.fraction), "uri": place}
        if self.losses:
            last = "lora" if "lora" in self.losses else _LOSSES.get(self.artifact.stage, "transfer")
            told["loss"] = self.losses.get(last, "")
        if self.manifest is not None:
            done = self.manifest
            return told | {
                "state": State.SUCCEEDED,
                "started_at": timestamp(done.started_at),
                "completed_at": timestamp(done.completed_at),
                "seconds": f"{done.seconds:.1f}",
                "source": Source.REUSED if done.completed_at < began else Source.COMPUTED,
                "bytes": done.size,
                "digest": done.digest,
            }
        if self.progress is None:
            waits = ", ".join(stage.value for stage in missing)
            state, why = (State.BLOCKED, f"waits for {waits}") if missing else (State.WAITING, "not started")
            return told | {"state": state, "message": why}
        news = self.progress
        told |= {"phase": news.phase, "step": news.step, "steps": news.steps}
        if now - news.updated_at > FRESH:
            why = f"no news since {timestamp(news.updated_at)}: stopped, or busy with something long"
            return told | {"state": State.SUSPENDED, "message": why}
        return told | {"state": State.RUNNING}


def with_history(fields: dict[str, Any], seen: Seen | None) -> dict[str, Any]:
    """The fields of a row with what the operator knows of its waits and tries, if it left anything."""
    if seen is None:
        return fields
    told = seen.model_dump(exclude={"message", "waiting_reason", "waiting_since", "waiting_place"})
    told["attempts"] = list(seen.attempts)
    told["waits"] = list(seen.waits)
    if fields["state"] is State.WAITING and seen.waiting_reason is not None:
        told |= {
            "waiting_reason": seen.waiting_reason,
            "waiting_since": seen.waiting_since,
            "waiting_place": seen.waiting_place,
            "message": seen.message,
        }
    if fields["state"] is State.SUCCEEDED and seen.attempts and not seen.attempts[-1].outcome:
        # The artifact was complete before the operator saw the Job's end.
        told["attempts"][-1] = seen.attempts[-1].model_copy(update={"outcome": "Succeeded"})
    return fields | told


def _cria(row: _Row, fields: dict[str, Any]) -> CriaStatus:
    worst = worst_layer(row.manifest.facts) if row.manifest is not None else None
    cria = row.artifact.cria
    if cria is None:
        raise ValueError("an artifact of the cria stage has a Cria")
    return CriaStatus(
        index=cria.index,
        layers=_told(cria),
        error=f"{worst[1]:.6g}" if worst is not None else "",
        losses=row.losses,
        curve=row.curve,
        **fields,
    )


def _told(cria: CriaRange) -> str:
    return f"{cria.first}-{cria.last}"


def _together(rows: Sequence[dict[str, Any]], missing: Sequence[Stage]) -> dict[str, Any]:
    """The row of a stage with several artifacts, or with none that is known yet."""
    if not rows:
        return {"state": State.BLOCKED, "message": f"waits for {', '.join(stage.value for stage in missing)}"}
    states = [row["state"] for row in rows]
    order = (State.RUNNING, State.SUSPENDED, State.WAITING, State.BLOCKED, State.SUCCEEDED)
    state = next(item for item in order if item in states)
    return {"state": state, "bytes": sum(row.get("bytes", 0) for row in rows)} | (
        {
            "started_at": min(row["started_at"] for row in rows),
            "completed_at": max(row["completed_at"] for row in rows),
            "seconds": f"{sum(float(row['seconds']) for row in rows):.1f}",
            "source": Source.COMPUTED
            if any(row["source"] is Source.COMPUTED for row in rows)
            else Source.REUSED,
        }
        if state is State.SUCCEEDED
        else {}
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _PROGRAMS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
