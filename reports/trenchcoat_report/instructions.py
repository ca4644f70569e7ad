"""How to go on with a run: load, serve and resume, as commands."""

import shlex
from typing import NamedTuple

from trenchcoat_api.spec.stages import ExportForm

from trenchcoat_report.run import Manner, Run

CHECKPOINT = "checkpoint"
"""The folder that commands fetch an export into."""


_WHOLE = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder}
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)"""
_ALONE = """from transformers import AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module

folder = {folder}
student = get_class_from_dynamic_module("modeling_trenchcoat.TrenchcoatLlamaForCausalLM", folder)
model = student.from_adapters(folder{teacher})"""


class Instruction(NamedTuple):
    """Commands for one purpose."""

    title: str
    language: str
    """console or python."""
    commands: str
    remark: str = ""


def instructions(run: Run) -> list[Instruction]:
    """As far as the run is."""
    found = []
    uri, alone = run.trenchcoat.status.export_uri, run.spec.export.form is ExportForm.ADAPTERS
    if uri:
        folder = uri if run.manner is Manner.LOCAL else CHECKPOINT
        if run.manner is Manner.CLUSTER:
            found.append(_fetch(run, uri))
        found.append(_load(run, folder, alone=alone))
        if not alone:
            found.append(_serve(folder))
    found.append(_resume(run))
    return found


def _fetch(run: Run, uri: str) -> Instruction:
    store = run.spec.store
    words = ["aws", "s3", "cp", "--recursive", "--endpoint-url", store.endpoint, uri, CHECKPOINT]
    return Instruction(
        "Fetch",
        "console",
        f"$ {shlex.join(words)}",
        "With the store's keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    )


def _load(run: Run, folder: str, *, alone: bool) -> Instruction:
    loaded = _ALONE if alone else _WHOLE
    code = f"""{loaded.format(folder=repr(folder), teacher=_teacher(run.spec.model.source))}
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
inputs = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))"""
    remark = "The folder's code is Trenchcoat's own; it needs torch and transformers."
    if alone:
        remark += " The folder has what was trained and nothing of the teacher: save the model to serve it."
    return Instruction("Load", "python", code, remark)


def _teacher(source: str) -> str:
    """The argument that names the teacher's folder; none where it comes from the hub by itself."""
    if source.startswith("hf://"):
        return ""
    folder = source.removeprefix("file://") if source.startswith("file://") else "TEACHER"
    return f", teacher={folder!r}"


def _serve(folder: str) -> Instruction:
    serve = shlex.join(["vllm", "serve", folder, "--served-model-name", "student"])
    return Instruction(
        "Serve",
        "console",
        f"$ pip install --no-deps . ./serving\n$ {serve}",
        "From a checkout of Trenchcoat, into an environment that has vLLM 0.32.",
    )


def _resume(run: Run) -> Instruction:
    if run.manner is Manner.LOCAL:
        command = "$ " + shlex.join(["trenchcoat", "run", run.spec_file, "--store", run.store])
        return Instruction(
            "Go on",
            "console",
            command,
            "What is complete is not made again; what was stopped goes on from its checkpoint.",
        )
    place = ["-n", run.trenchcoat.metadata.namespace] if run.trenchcoat.metadata.namespace else []
    verbs = ("status", "suspend", "resume")
    commands = [shlex.join(["kubectl", "trenchcoat", verb, run.name, *place]) for verb in verbs]
    return Instruction(
        "Look, stop and go on",
        "console",
        "\n".join(f"$ {command}" for command in commands),
        "Suspended after a checkpoint, resumed from it.",
    )
