"""The model card of an exported checkpoint."""

from trenchcoat_api.artifacts import Perplexity
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig

NAMES = {
    "teacher": "the teacher, softmax attention",
    "untrained": "hybrid attention, untrained feature maps",
    "transfer": "after attention transfer",
    "criaLora": "after LoRA by Cria",
    "stitched": "after stitching: this model",
}


def model_card(spec: TrenchcoatSpec, config: TrenchcoatLlamaConfig, perplexities: list[Perplexity]) -> str:
    """Return README.md: what the model is, how to load it, and how good it was measured to be."""
    source = spec.model.source.removeprefix("hf://")
    base = f"base_model: {source}\n" if spec.model.source.startswith("hf://") else ""
    kept = ", ".join(map(str, config.keep_softmax_layers)) or "none"
    live = f"{config.window + 1} to {2 * config.window}"
    card = f"""---
library_name: transformers
{base}tags: [linear-attention, lolcats, trenchcoat]
---
# A linearized Llama

{source}, its softmax attention replaced by hybrid attention: exact softmax over a terraced window of {live}
keys, linear attention with learned feature maps over everything before. Decoding needs constant memory.
Made by Trenchcoat after LoLCATs (arXiv 2410.10254).

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this checkpoint
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```

Prompts of one batch must be of equal length: padding would shift the window's blocks, and is refused.

| | |
|---|---|
| window | {config.window} |
| feature dimension | {config.feature_dim} (twice as many features) |
| key feature maps | {"one a query head" if config.key_maps == "perQueryHead" else "one a key/value head"} |
| layers that keep softmax attention | {kept} |
| training tokens, at most | {spec.data.tokens} |
"""
    if perplexities:
        rows = "\n".join(f"| {NAMES.get(row.name, row.name)} | {row.perplexity} |" for row in perplexities)
        card += f"\nPerplexity on held-out text:\n\n| | perplexity |\n|---|---|\n{rows}\n"
    return card
