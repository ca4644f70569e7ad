"""The export stage: the student as a Hugging Face checkpoint that anyone can load.

Adapters are merged into the weights layer by layer, so memory holds one layer and one file of the checkpoint.
Besides the weights it leaves the tokenizer, the configuration, the model's code and a model card.
"""

import json
from pathlib import Path

from trenchcoat_api.artifacts import Artifacts, Facts
from trenchcoat_api.phases import without_adapted_teacher
from trenchcoat_api.spec import ExportForm, TrenchcoatSpec

from trenchcoat_trainer.checkpoints.shards import TEACHER, teacher_files
from trenchcoat_trainer.errors import MissingInputError
from trenchcoat_trainer.models import modeling_trenchcoat
from trenchcoat_trainer.models.artifacts import load_student_config
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.stages.export.card import model_card
from trenchcoat_trainer.stages.export.delivery import deliver
from trenchcoat_trainer.stages.export.eval_results import eval_results
from trenchcoat_trainer.stages.export.lineage import lineage
from trenchcoat_trainer.stages.export.weights import WRITERS
from trenchcoat_trainer.students import form_of

TOKENIZER_CONFIG = "tokenizer_config.json"
OWN_CODE = (
    "configuration_trenchcoat.py",
    "modeling_trenchcoat.py",
    "inference_trenchcoat.py",
    "fused_trenchcoat.py",
    "decoding_trenchcoat.py",
)
"""Files of `models` that an exported checkpoint carries."""
AUTO_MAP = {
    "AutoConfig": "configuration_trenchcoat.TrenchcoatLlamaConfig",
    "AutoModelForCausalLM": "modeling_trenchcoat.TrenchcoatLlamaForCausalLM",
}


def run(context: StageContext) -> None:
    """Write the checkpoint, and upload it where asked to; what an earlier attempt did is not done again."""
    config = load_student_config(context)
    WRITERS[context.spec.export.form](context, config)
    kept = {path.removeprefix(TEACHER): path for path in teacher_files(context)}
    files = {
        name: context.read_object(context.artifacts.shard, path)
        for name, path in kept.items()
        if name not in ("config.json", TOKENIZER_CONFIG)
    }
    settings = kept.get(TOKENIZER_CONFIG)
    files[TOKENIZER_CONFIG] = tokenizer_config(
        context.read_object(context.artifacts.shard, settings) if settings else b"{}"
    )
    files["config.json"] = config_json(config, context.spec)
    files |= code(config)
    files["README.md"] = model_card(context.spec, config, measured(context), lineage(context)).encode()
    files |= eval_results(measured(context))
    for name, data in files.items():
        context.writer.write(name, data)
    if context.spec.export.destination is not None:
        deliver(context)
    context.writer.finish()


def code(config: TrenchcoatLlamaConfig) -> dict[str, bytes]:
    """Return the files of the exported model's code; they import each other, torch and transformers alone.

    Those of kernels import Triton too, and are imported where it runs.
    """
    form = form_of(config)
    own, student = Path(modeling_trenchcoat.__file__), Path(form.code.__file__)
    paths = (*map(own.with_name, OWN_CODE), *map(student.with_name, form.companions))
    files = {path.name: path.read_bytes() for path in paths}
    # Older transformers fetch the files that the model's names, and not those that these name. Never called.
    modeling = files[own.name].decode()
    names = [path.stem for path in paths if path != own and f"from .{path.stem} import" not in modeling]
    lines = ["\n\ndef _fetched():", *(f"    from .{name} import __name__  # noqa: F401" for name in names)]
    files[own.name] = (modeling + "\n".join(lines) + "\n").encode()
    return {**files, "student_attention.py": student.read_bytes()}


def tokenizer_config(teachers: bytes) -> bytes:
    """Return tokenizer_config.json: the teacher's, with a class, which only a Llama's own type stands for.

    What transformers 5 writes and 4 does not know is put in the words that both read.
    """
    fields = json.loads(teachers)
    known = {name: value for name, value in fields.items() if name != "extra_special_tokens"}
    named = fields.get("tokenizer_class") or "LlamaTokenizer"
    known["tokenizer_class"] = "PreTrainedTokenizerFast" if named == "TokenizersBackend" else named
    extra = fields.get("extra_special_tokens")
    if extra:
        known["additional_special_tokens" if isinstance(extra, list) else "extra_special_tokens"] = extra
    return teachers if known == fields else json.dumps(known, indent=2).encode()


def config_json(config: TrenchcoatLlamaConfig, spec: TrenchcoatSpec | None = None) -> bytes:
    """Return config.json: the student's configuration, and where its code is found.

    Where `spec` leaves the teacher's weights out, it also says where on the hub they are.
    """
    fields = json.loads(config.to_json_string(use_diff=False))
    # For readers of transformers 4's names. Not rope_scaling: where both are, AutoTokenizer of transformers 5
    # fails, which reads this file without its code (findings/autotokenizer-fails-on-llama3-rope.sh). Under 4
    # the configuration's own code makes it.
    fields["rope_theta"] = fields["rope_parameters"]["rope_theta"]
    fields |= {"architectures": ["TrenchcoatLlamaForCausalLM"], "auto_map": AUTO_MAP}
    if spec is not None and spec.export.form is ExportForm.ADAPTERS and spec.model.source.startswith("hf://"):
        source = spec.model.source.removeprefix("hf://")
        fields |= {"teacher": source, "teacher_revision": spec.model.revision}
    return json.dumps(fields, indent=2, sort_keys=True).encode()


def measured(context: StageContext) -> Facts | None:
    """Return what the evaluation measured if it is complete; export does not wait for it."""
    # Where the adapted teacher could not be trained, the evaluation is that of a spec without it.
    for artifacts in (context.artifacts, Artifacts(without_adapted_teacher(context.spec))):
        try:
            return context.manifest(artifacts.evaluate(context.crias)).facts
        except MissingInputError:
            continue
    return None
