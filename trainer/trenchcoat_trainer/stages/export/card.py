"""The model card of an exported checkpoint."""

from trenchcoat_api.artifacts import Facts
from trenchcoat_api.sheets import Sheet, remarks, sheets
from trenchcoat_api.spec import ExportForm, TrenchcoatSpec

from trenchcoat_trainer.data import positions
from trenchcoat_trainer.models.configuration_trenchcoat import (
    NEWEST_MAJOR,
    OLDEST,
    TRIED,
    TrenchcoatLlamaConfig,
)
from trenchcoat_trainer.stages.export.lineage import Lineage
from trenchcoat_trainer.students import form_of


def model_card(
    spec: TrenchcoatSpec,
    config: TrenchcoatLlamaConfig,
    measured: Facts | None,
    lineage: Lineage | None = None,
) -> str:
    """Return README.md: what the model is, how to load it, how good it is, what it was made of."""
    source = spec.model.source.removeprefix("hf://")
    base = f"base_model: {source}\n" if spec.model.source.startswith("hf://") else ""
    kept = ", ".join(map(str, config.keep_softmax_layers)) or "none"
    form = form_of(config).card(config)
    rows = "\n".join(f"| {name} | {value} |" for name, value in form.rows)
    card = f"""---
library_name: transformers
{base}tags: [{", ".join((*form.tags, "trenchcoat"))}]
---
# A linearized Llama

{source}, its softmax attention replaced by {form.attention}. {_memory(config)}
Made by Trenchcoat after {form.source}.

```python
{_LOADING[spec.export.form]}
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)  # or it asks, and waits
inputs = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```

Its code takes transformers from {OLDEST[0]}.{OLDEST[1]} on, before {NEWEST_MAJOR + 1}.
Tried were {", ".join(TRIED)}.
{form.padding}
{_SERVING[spec.export.form]}

| | |
|---|---|
{rows}
| layers that keep softmax attention | {kept} |
| training tokens, at most | {spec.data.tokens} |
{_lengths(spec, config)}"""
    if measured is not None:
        for sheet in sheets(measured.perplexities, measured.evaluation):
            card += f"\n## {sheet.title}\n\n{markdown(sheet)}"
        told = remarks(measured.perplexities, measured.evaluation)
        card += "".join(f"\n- {remark}" for remark in told) + "\n" * bool(told)
    return card + (_lineage(lineage) if lineage is not None else "")


_WHOLE = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this checkpoint
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)"""
_LOADING = {
    ExportForm.MERGED: _WHOLE,
    ExportForm.DELTA: _WHOLE,
    ExportForm.ADAPTERS: """from transformers import AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module

folder = "."  # this checkpoint: what was trained, without the teacher's weights
student = get_class_from_dynamic_module("modeling_trenchcoat.TrenchcoatLlamaForCausalLM", folder)
model = student.from_adapters(folder)  # the teacher from the hub, or teacher=FOLDER""",
}
_SERVED = """Where Trenchcoat's plugin `trenchcoat-vllm` is installed beside vLLM,
`vllm serve` takes this folder as it is."""
_SERVING = {
    ExportForm.MERGED: _SERVED,
    ExportForm.DELTA: (
        f"{_SERVED}\nIts files `base-*` are the teacher's own; `student-*` take the place of some of it."
    ),
    ExportForm.ADAPTERS: "To serve it, save the model that the lines above load (`save_pretrained`).",
}


def _lineage(lineage: Lineage) -> str:
    rows = "".join(f"| {name} | {value} |\n" for name, value in lineage.rows)
    return f"""
## What it was made of

| | |
|---|---|
{rows}
Digests are of the artifacts' contents, as their manifests list them. The settings:

```yaml
{lineage.spec}```
"""


def _lengths(spec: TrenchcoatSpec, config: TrenchcoatLlamaConfig) -> str:
    length, long = spec.data.sequence_length, spec.stitch.long_sequences
    multiple = spec.stitch.long_multiple(length, positions(config))
    if multiple == 1 or not spec.stitch.epochs:
        return ""
    return (
        f"| tokens in a training sequence | {length}, {multiple * length} in the last {long.share} of "
        "the stitch |\n"
    )


def _memory(config: TrenchcoatLlamaConfig) -> str:
    if not config.keep_softmax_layers:
        return "Decoding needs constant memory."
    return (
        "Decoding needs constant memory\nin all layers but those that keep softmax attention, whose cache "
        "grows with every token."
    )


def markdown(sheet: Sheet) -> str:
    """A table in Markdown; numbers to the right."""
    rule = ("---", *("---:" for _ in sheet.header[1:]))
    return "".join(f"| {' | '.join(row)} |\n" for row in (sheet.header, rule, *sheet.rows))
