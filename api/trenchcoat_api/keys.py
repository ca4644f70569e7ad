"""Content keys: the hash of what a stage's result depends on."""

import hashlib
import json
from typing import Any

from trenchcoat_api.base import Camel
from trenchcoat_api.layer_kinds import chooses_layers
from trenchcoat_api.phases import adapter_epochs
from trenchcoat_api.spec import (
    Attention,
    Data,
    Evaluate,
    Export,
    ExportForm,
    Form,
    KeyMaps,
    LongSequences,
    LrSchedule,
    Stitch,
    TeacherProducts,
    Transfer,
    TrenchcoatSpec,
)
from trenchcoat_api.stages import Stage

# Export 2: it also loads under transformers 4, and its card has the lineage.
CODE_VERSIONS: dict[Stage, int] = dict.fromkeys(Stage, 1) | {Stage.EVALUATE: 2, Stage.EXPORT: 2}
"""Raised by hand whenever a stage's code computes something else from the same inputs."""
KEY_LENGTH = 16
_HOW_IT_RUNS = {"nodes", "gpus_per_node"}
"""What decides how a stage runs but not what it computes."""


def content_key(stage: Stage, fields: dict[str, Any], inputs: tuple[str, ...]) -> str:
    """Hash what a stage's result depends on: 16 hex digits of SHA-256 over canonical JSON."""
    document = {"stage": stage, "code": CODE_VERSIONS[stage], "fields": fields, "inputs": list(inputs)}
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:KEY_LENGTH]


def boundary_key(index: int, maker_key: str) -> str:
    """Key of the boundary that enters Cria `index`, made on the way by the Cria before it, of `maker_key`."""
    return content_key(Stage.COLLECT, {"boundary": index}, (maker_key,))


_ADDED_LATER: dict[type[Camel], dict[str, str | int | None]] = {
    Data: {"config": None, "split": "train", "revision": "main"},
    Attention: {
        "key_maps": KeyMaps.PER_QUERY_HEAD.value,
        "form": Form.LOLCATS.value,
        "first_tokens": 0,
        "wide": None,
    },
    Transfer: {"window_dropout": "0", "teacher_products": TeacherProducts.DTYPE.value},
    Stitch: {"recall_share": "0", "lr_schedule": LrSchedule.CONSTANT.value},
    LongSequences: {"recall_share": None},
    Evaluate: {"other_text": None, "tasks": None, "samples": 3},
    Export: {"form": ExportForm.MERGED.value, "destination": None, "private": True},
}
"""Fields younger than the first release, with the value at which they change nothing."""


_RECALL_TEXT = 2
"""Raised when synthetic recall becomes another text, which concerns none but those who train on it."""


def dump_fields(model: Camel, *, exclude: set[str] | None = None) -> dict[str, Any]:
    """The fields of a part of the spec, for a key.

    They have Python's names, not YAML's: the key must not change when an alias does. Nor does it when a field
    is added that is not used.
    """
    fields = model.model_dump(mode="json", exclude=exclude)
    unused = _ADDED_LATER.get(type(model), {})
    return {name: value for name, value in fields.items() if name not in unused or value != unused[name]}


def stitch_fields(stitch: Stitch) -> dict[str, Any]:
    """The fields of spec.stitch that say what is trained, for a key."""
    fields = dump_fields(stitch, exclude={*_HOW_IT_RUNS, "long_sequences"})
    if stitch.long_sequences.are_on:  # young, and no part of the key where they are off
        fields["long_sequences"] = dump_fields(stitch.long_sequences)
    if stitch.has_recall:
        fields["recall_text"] = _RECALL_TEXT
    return fields


_UNREAD_BY_WINDOW = {
    Attention: {"feature_dim", "key_maps"},
    # It has nothing to train in attention transfer: what is left weighs the loss of LoRA by Cria, and says
    # which sequences the error is measured on.
    Transfer: set(Transfer.model_fields) - {"mse_weight", "epochs", "micro_batch_size"},
}


def form_fields(attention: Attention, transfer: Transfer) -> dict[str, dict[str, Any]]:
    """The fields of spec.attention and spec.transfer that the student's form reads, for a key."""
    unread = _UNREAD_BY_WINDOW if attention.form is Form.WINDOW else {}
    if attention.wide is not None and attention.wide.layers is None and not chooses_layers(attention):
        attention = attention.model_copy(update={"wide": None})
    return {
        "attention": dump_fields(attention, exclude=unread.get(Attention)),
        "transfer": dump_fields(transfer, exclude=unread.get(Transfer)),
    }


def training_fields(spec: TrenchcoatSpec) -> dict[str, Any]:
    """What all training depends on, of teacher and student, for a key."""
    starts = spec.data.start_positions
    return {
        "seed": spec.seed,
        "dtype": spec.dtype,
        # Young, and no part of the key where it is off.
        **({"startPositions": dump_fields(starts)} if starts.are_random else {}),
    }


def adapt_fields(spec: TrenchcoatSpec) -> dict[str, Any]:
    """What the adapted teacher depends on besides model and text, for a key; the stitch makes it."""
    return {
        **training_fields(spec),
        "program": CODE_VERSIONS[Stage.STITCH],
        "epochs": adapter_epochs(spec),
        "stitch": {name: value for name, value in stitch_fields(spec.stitch).items() if name != "epochs"},
    }
