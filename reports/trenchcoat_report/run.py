"""What a report is made of: a Trenchcoat with its status, and what its status does not tell."""

from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field
from trenchcoat_api.base import Camel
from trenchcoat_api.layer_kinds import SOFTMAX, LayerKind, chooses_layers, layer_kinds
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.results import ModelForm, Perplexity
from trenchcoat_api.sheets import baseline
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import INPUTS, Stage
from trenchcoat_api.status import ConditionType, State, Work

MAX_FORMER = 4
"""Former runs that a report compares with, at most."""
_HIDDEN = {"pods", "status"}
"""Environment variables of pods may hold what should not be copied."""


class Manner(StrEnum):
    """How a run was started, which decides the commands to go on with."""

    CLUSTER = "cluster"
    LOCAL = "local"


class LayerFigures(Camel):
    """What was measured of one decoder layer."""

    layer: int = Field(description="Counted from 0.")
    error: str = Field(default="", description="Relative error of its attention outputs after transfer.")
    losses: list[str] = Field(
        default_factory=list, description="Of attention transfer: at its first step, and at its best."
    )
    outside: str = Field(
        default="",
        description=(
            "Share of its attention outside the window, 0 to 1: of the linear part in form lolcats, of the "
            "first tokens in form window."
        ),
    )


class Sample(Camel):
    """A beginning of held-out text, and how teacher and student go on with it."""

    prompt: str = Field(description="The beginning.")
    text: str = Field(description="What really follows.")
    continuations: dict[str, str] = Field(description="By the names of the forms, greedily chosen.")


class Run(Camel):
    """One run, as far as it is."""

    trenchcoat: Trenchcoat = Field(description="With a status; without what its pods are given.")
    layers: list[LayerFigures] = Field(default_factory=list, description="Of those that were measured.")
    samples: list[Sample] = Field(default_factory=list, description="Where the evaluation took any.")
    curves: dict[str, list[str]] = Field(
        default_factory=dict, description="Losses of stages whose rows have no curve, by their names."
    )
    began: datetime = Field(description="When it was applied, or first started.")
    told_at: datetime = Field(description="When this was found out.")
    manner: Manner = Field(description="On a cluster, or on one machine.")
    store: str = Field(default="", description="Where its artifacts stand, for people.")
    spec_file: str = Field(default="", description="The file that it was started from; local alone.")
    failure: str = Field(default="", description="What ended it, if anything did; local alone.")
    versions: dict[str, str] = Field(default_factory=dict, description="Of programs, by their names.")

    @property
    def name(self) -> str:
        """Of the Trenchcoat."""
        return self.trenchcoat.metadata.name

    @property
    def spec(self) -> TrenchcoatSpec:
        """Of the Trenchcoat."""
        return self.trenchcoat.spec

    def condition(self, kind: ConditionType) -> str:
        """The message of a condition that is True, or "true" where it has none; empty where it is not."""
        found = next((item for item in self.trenchcoat.status.conditions if item.type is kind), None)
        return (found.message or "true") if found is not None and found.status == "True" else ""

    @property
    def is_complete(self) -> bool:
        """Whether every stage is."""
        return bool(self.condition(ConditionType.SUCCEEDED))

    def perplexity(self, form: ModelForm) -> Perplexity | None:
        """Of one form of the model, if it was measured."""
        return next((item for item in self.trenchcoat.status.perplexities if item.name == form), None)

    @property
    def ratio(self) -> float | None:
        """The student's perplexity in parts of the baseline's, if both were measured."""
        student, base = self.perplexity(ModelForm.STITCHED), baseline(self.trenchcoat.status.perplexities)
        return float(student.perplexity) / float(base.perplexity) if student and base else None

    @property
    def base_name(self) -> str:
        """What the student is held to, in words."""
        adapted = self.perplexity(ModelForm.ADAPTED_TEACHER)
        return "adapted teacher" if adapted is not None else "teacher"

    def kinds(self) -> tuple[LayerKind, ...]:
        """What each layer attends with; none while that is not known."""
        status = self.trenchcoat.status
        chosen = status.selection.layers if status.selection is not None else None
        if status.model is None or (chosen is None and chooses_layers(self.spec.attention)):
            return ()
        return layer_kinds(self.spec.attention, status.model.layers, chosen)

    def why(self, layer: int) -> str:
        """Why a layer is of another kind than the usual one; empty where it is not."""
        attention, selection = self.spec.attention, self.trenchcoat.status.selection
        if layer in attention.keep_softmax_layers:
            return "named in spec.attention.keepSoftmaxLayers"
        wide = attention.wide
        if wide is None:
            return ""
        if wide.layers is not None:
            return "named in spec.attention.wide.layers" if layer in wide.layers else ""
        if selection is None or layer not in selection.layers:
            return ""
        score = float(selection.scores[layer]) if layer < len(selection.scores) else None
        if score is None:
            return "chosen by the select stage"
        rank = 1 + sum(float(other) > score for other in selection.scores)
        return f"chosen by the select stage: score {score:.3g}, place {rank} of {len(selection.scores)}"

    def works(self) -> Iterator[tuple[str, Stage, Work]]:
        """Names, stages and rows of all that runs by itself: the Crias stand for their stage."""
        for row in self.trenchcoat.status.stages:
            if row.name != Stage.CRIA:
                yield row.name, Stage(row.name), row
                continue
            if not self.trenchcoat.status.crias:
                yield row.name, Stage.CRIA, row
            for cria in self.trenchcoat.status.crias:
                yield f"Cria {cria.index}", Stage.CRIA, cria

    def ready_at(self, stage: Stage) -> datetime | None:
        """When all inputs of a stage were complete; the run's beginning without inputs, none if unknown."""
        moments = [self.began]
        for _, other, row in self.works():
            if other not in INPUTS[stage]:
                continue
            if row.state is not State.SUCCEEDED:
                return None
            if row.completed_at:
                moments.append(datetime.fromisoformat(row.completed_at))
        return max(moments)

    def document(self) -> str:
        """The run as JSON, as `Run.model_validate_json` reads it."""
        return self.model_dump_json(
            by_alias=True,
            exclude_none=True,
            exclude={"trenchcoat": {"spec": {"pods"}}},
        )


def spec_document(run: Run) -> dict[str, Any]:
    """The object as a person would write it to have the same run; every setting that it resolved to."""
    spec = run.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"pods"})
    return {
        "apiVersion": run.trenchcoat.api_version,
        "kind": run.trenchcoat.kind,
        "metadata": {"name": run.name},
        "spec": spec,
    }


def is_softmax(kind: LayerKind) -> bool:
    """Whether a layer is the teacher's own."""
    return kind == SOFTMAX
