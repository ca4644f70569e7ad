"""The spec of a Trenchcoat as a whole, and what must hold between its parts."""

from typing import Any

from pydantic import Field, model_validator

from trenchcoat_api.base import Camel
from trenchcoat_api.presets import PRESET_MARK, PRESETS, Preset, with_preset
from trenchcoat_api.rules import Rule
from trenchcoat_api.spec.attention import WINDOWS, Attention, DType, Form
from trenchcoat_api.spec.operation import Planning, Retention, Scheduling, StagePods
from trenchcoat_api.spec.sources import Data, Model, Store
from trenchcoat_api.spec.stages import Collect, CollectStrategy, Evaluate, Export, Gates
from trenchcoat_api.spec.tracking import Tracking
from trenchcoat_api.spec.training import (
    CriaLora,
    Objective,
    ProjectionName,
    Stitch,
    TeacherProducts,
    Transfer,
)
from trenchcoat_api.strings import where_decimals

_SEQUENCE = Data.model_fields["sequence_length"].default
_BY_DEFAULT = f"{WINDOWS[Form.WINDOW]} unless set, {WINDOWS[Form.LOLCATS]} in form lolcats"
_PUBLISHED = ", ".join(f"'{preset.value}'" for preset in Preset if PRESETS[preset].form == Form.LOLCATS)
# The API server gives neither form nor window a default, for they go by what else is set.
_FORM = (
    "(has(self.attention.form) ? self.attention.form : "
    f"has(self.preset) && self.preset in [{_PUBLISHED}] ? 'lolcats' : 'window')"
)
_WINDOW = (
    f"(has(self.attention.window) ? self.attention.window : {_FORM} == 'lolcats' ? "
    f"{WINDOWS[Form.LOLCATS]} : {WINDOWS[Form.WINDOW]})"
)
_IN_DTYPE = "self.transfer.teacherProducts == 'dtype'"
_HAS_WIDE_WINDOW = "(has(self.attention.wide) && has(self.attention.wide.window))"


def _in_dtype(spec: Any) -> bool:
    return bool(spec.transfer.teacher_products is TeacherProducts.DTYPE)


class TrenchcoatSpec(Camel):
    """What to linearize, with what, and where the results go."""

    rules = (
        Rule(
            cel="!has(self.data.tokens) || self.data.tokens >= self.data.sequenceLength",
            holds=lambda spec: spec.data.tokens >= spec.data.sequence_length,
            message=(
                f"data.tokens is less than data.sequenceLength ({_SEQUENCE} unless set), so that no sequence "
                "would be full: raise data.tokens, or lower data.sequenceLength"
            ),
            field="data.tokens",
        ),
        Rule(
            cel="!self.evaluate.enabled || self.data.heldOutTokens >= self.data.sequenceLength",
            holds=lambda spec: (
                not spec.evaluate.enabled or spec.data.held_out_tokens >= spec.data.sequence_length
            ),
            message=(
                f"data.heldOutTokens is less than data.sequenceLength ({_SEQUENCE} unless set), so that "
                "there would be nothing to evaluate on: raise it, or set evaluate.enabled to false"
            ),
            field="data.heldOutTokens",
        ),
        Rule(
            cel=f"self.data.sequenceLength > {_WINDOW}",
            holds=lambda spec: spec.data.sequence_length > spec.attention.window,
            message=(
                f"attention.window ({_BY_DEFAULT}) covers the whole data.sequenceLength ({_SEQUENCE} "
                "unless set), so that training would see nothing before the window: lower attention.window, "
                "or raise data.sequenceLength"
            ),
            field="attention.window",
        ),
        Rule(
            cel=(
                f"{_FORM} != 'lolcats' || !has(self.attention.firstTokens) || self.attention.firstTokens == 0"
            ),
            holds=lambda spec: spec.attention.form is not Form.LOLCATS or spec.attention.first_tokens == 0,
            message=(
                "attention.firstTokens is for form window alone, for lolcats sees the first tokens by linear "
                "attention: remove firstTokens, or set form to window"
            ),
            field="attention.firstTokens",
        ),
        Rule(
            cel=f"{_FORM} == 'window' || !{_HAS_WIDE_WINDOW}",
            holds=lambda spec: spec.attention.form is Form.WINDOW or spec.attention.wide_window is None,
            message=(
                "attention.wide.window is for form window alone: remove wide.window, so that the wide layers "
                "keep softmax attention, or set form to window"
            ),
            field="attention.wide.window",
        ),
        Rule(
            cel=(f"{_FORM} != 'window' || !{_HAS_WIDE_WINDOW} || self.attention.wide.window > {_WINDOW}"),
            holds=lambda spec: (
                spec.attention.form is not Form.WINDOW
                or spec.attention.wide_window is None
                or spec.attention.wide_window > spec.attention.window
            ),
            message=(
                "attention.wide.window is no more than attention.window, the other layers' "
                f"({_BY_DEFAULT}): raise wide.window, or lower window"
            ),
            field="attention.wide.window",
        ),
        Rule(
            cel="self.criaLora.objective != 'layerwise' || !('o_proj' in self.criaLora.lora.targetModules)",
            holds=lambda spec: (
                spec.cria_lora.objective is not Objective.LAYERWISE
                or ProjectionName.O_PROJ not in spec.cria_lora.lora.target_modules
            ),
            message=(
                "criaLora.lora.targetModules has o_proj, which the objective layerwise cannot train (it "
                "compares attention before o_proj): remove it, or set criaLora.objective to block"
            ),
            field="criaLora.lora.targetModules",
        ),
        Rule(
            cel=(
                f"{_FORM} != 'window' || self.criaLora.objective != 'layerwise' || "
                "(has(self.criaLora.epochs) && self.criaLora.epochs == 0) || "
                + where_decimals("double(self.transfer.mseWeight) > 0.0", "self.transfer.mseWeight")
            ),
            holds=lambda spec: (
                spec.attention.form is not Form.WINDOW
                or spec.cria_lora.objective is not Objective.LAYERWISE
                or spec.cria_lora.epochs == 0
                or float(spec.transfer.mse_weight) > 0
            ),
            message=(
                "transfer.mseWeight is 0, which leaves LoRA by Cria no loss in form window (it has no "
                "attention maps to compare): raise it, or set criaLora.objective to block"
            ),
            field="transfer.mseWeight",
        ),
        Rule(
            cel=(
                f"{_FORM} != 'window' || "
                + where_decimals("double(self.transfer.windowDropout) == 0.0", "self.transfer.windowDropout")
            ),
            holds=lambda spec: (
                spec.attention.form is not Form.WINDOW or float(spec.transfer.window_dropout) == 0
            ),
            message=(
                "transfer.windowDropout is for form lolcats alone, for nothing else has more than a window: "
                "remove it, or set attention.form to lolcats"
            ),
            field="transfer.windowDropout",
        ),
        Rule(
            cel=f"{_IN_DTYPE} || {_FORM} != 'window'",
            holds=lambda spec: _in_dtype(spec) or spec.attention.form is not Form.WINDOW,
            message=(
                "transfer.teacherProducts is for form lolcats alone, for nothing else trains in attention "
                "transfer: remove it, or set attention.form to lolcats"
            ),
            field="transfer.teacherProducts",
        ),
        Rule(
            cel=f"{_IN_DTYPE} || self.collect.strategy != 'Rolling'",
            holds=lambda spec: _in_dtype(spec) or spec.collect.strategy is not CollectStrategy.ROLLING,
            message=(
                "transfer.teacherProducts is float8 where collect.strategy is Rolling, whose transfer makes "
                "the next Cria's inputs, which must be the teacher's own: remove it, or set collect.strategy "
                "to Distributed"
            ),
            field="transfer.teacherProducts",
        ),
        Rule(
            cel=f"{_IN_DTYPE} || self.dtype == 'bfloat16'",
            holds=lambda spec: _in_dtype(spec) or spec.dtype is DType.BFLOAT16,
            message=(
                "transfer.teacherProducts is float8, whose results are bfloat16, where dtype is not: remove "
                "it, or set dtype to bfloat16"
            ),
            field="transfer.teacherProducts",
        ),
        Rule(
            cel=(
                "(self.evaluate.enabled && self.export.enabled) || (!has(self.gates.maxPerplexityRatio) && "
                "!has(self.gates.maxLengthRatio) && !has(self.gates.minRecall))"
            ),
            holds=lambda spec: (
                (spec.evaluate.enabled and spec.export.enabled)
                or (
                    spec.gates.max_perplexity_ratio is None
                    and spec.gates.max_length_ratio is None
                    and spec.gates.min_recall is None
                )
            ),
            message=(
                "gates.maxPerplexityRatio, maxLengthRatio and minRecall hold the export by what the "
                "evaluation measured, and one of the two is switched off: remove these bounds, or set "
                "evaluate.enabled and export.enabled to true"
            ),
            field="gates",
        ),
    )

    model: Model = Field(description="The teacher.")
    data: Data = Field(description="The text.")
    preset: Preset = Field(
        default=Preset.STANDARD,
        description=(
            "The student's form and how much it is trained, where the fields themselves are not set. By "
            "default shipped where attention.form is lolcats, and else standard. "
            + " ".join(f"{name.value}: {values.describe()}." for name, values in PRESETS.items())
        ),
        json_schema_extra={PRESET_MARK: True},
    )
    store: Store = Field(description="The S3 store that holds all artifacts.")
    layers_per_cria: int = Field(
        default=9, description="Consecutive decoder layers per Cria.", ge=1, le=10_000
    )
    dtype: DType = Field(default=DType.BFLOAT16, description="Number format of weights and activations.")
    seed: int = Field(
        default=0, description="Seed of initial values and of the order of data.", ge=0, le=2**31 - 1
    )
    attention: Attention = Field(default_factory=Attention, description="The student's attention.")
    collect: Collect = Field(default_factory=Collect, description="Multi-node collection of activations.")
    transfer: Transfer = Field(default_factory=Transfer, description="Attention transfer, by Cria.")
    cria_lora: CriaLora = Field(default_factory=CriaLora, description="LoRA by Cria.")
    stitch: Stitch = Field(default_factory=Stitch, description="End-to-end LoRA on several nodes.")
    evaluate: Evaluate = Field(default_factory=Evaluate, description="Perplexity on held-out text.")
    export: Export = Field(default_factory=Export, description="The Hugging Face checkpoint.")
    gates: Gates = Field(default_factory=Gates, description="Bounds of quality that a run must keep to.")
    scheduling: Scheduling = Field(default_factory=Scheduling, description="How the Jobs share the cluster.")
    plan: Planning = Field(default_factory=Planning, description="What the plan of the run goes by.")
    pods: StagePods = Field(default_factory=StagePods, description="Pod settings by stage.")
    tracking: Tracking | None = Field(
        default=None, description="Trackers that losses are told to as they come; none by default."
    )
    retention: Retention = Field(
        default=Retention.KEEP,
        description=(
            "Keep leaves all artifacts in the store. DeleteIntermediate deletes activations once all Crias "
            "are trained, and shards once all stages are complete. Delete deletes all artifacts when the "
            "Trenchcoat is deleted. Both hold for artifacts of former specs, too. What another Trenchcoat "
            "uses is kept."
        ),
    )
    suspend: bool = Field(default=False, description="Stops all Jobs after a checkpoint; false resumes.")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, fields: Any) -> Any:
        return with_preset(fields) if isinstance(fields, dict) else fields
