"""The model card of an exported checkpoint."""

from trenchcoat_api.artifacts import Perplexity
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.students import form_of

STAGES = {
    "teacher": "the teacher, softmax attention",
    "transfer": "after attention transfer",
    "criaLora": "after LoRA by Cria",
    "stitched": "after stitching: this model",
}


def model_card(spec: TrenchcoatSpec, config: TrenchcoatLlamaConfig, perplexities: list[Perplexity]) -> str:
    """Return README.md: what the model is, how to load it, and how good it was measured to be."""
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

{source}, its softmax attention replaced by {form.attention}. Decoding needs constant memory.
Made by Trenchcoat after {form.source}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this checkpoint
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)  # or it asks, and waits
inputs = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```

Prompts that are generated from must be of equal length in one batch: padding would shift the window's
blocks, and is refused. For scores alone, pad on the right and pass `use_cache=False`.

| | |
|---|---|
{rows}
| layers that keep softmax attention | {kept} |
| training tokens, at most | {spec.data.tokens} |
"""
    if perplexities:
        names = {**STAGES, "untrained": form.untrained}
        rows = "\n".join(f"| {names.get(row.name, row.name)} | {row.perplexity} |" for row in perplexities)
        card += f"\nPerplexity on held-out text:\n\n| | perplexity |\n|---|---|\n{rows}\n"
    return card
