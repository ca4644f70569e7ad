"""What a bare environment makes of exports: run by its Python, where there is no package of ours."""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module


def answer(folder: Path, prompts: list[list[int]], new_tokens: int, text: str) -> dict[str, object]:
    """Logits of the longest prompt, and greedy tokens of all as one batch padded at the left."""
    if (folder / "teacher").exists():  # what was trained alone
        student = get_class_from_dynamic_module("modeling_trenchcoat.TrenchcoatLlamaForCausalLM", str(folder))
        model = student.from_adapters(str(folder), teacher=str(folder / "teacher"), dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    longest = max(map(len, prompts))
    ids = torch.tensor([[1] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    batch = model.generate(ids, attention_mask=mask, **settings)[:, longest:].tolist()
    alone = [
        model.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist() for prompt in prompts
    ]
    decoder_class = get_class_from_dynamic_module("decoding_trenchcoat.FixedDecoder", str(folder))
    with torch.no_grad():
        outputs = model(ids, attention_mask=mask, use_cache=True)
    cache = outputs["cache"] if "cache" in outputs else outputs["past_key_values"]
    decoder = decoder_class(model, cache, mask, new_tokens)
    fixed = decoder.generate(outputs.logits[:, -1:].argmax(-1), new_tokens)
    with torch.no_grad():
        logits = model(torch.tensor([max(prompts, key=len)]), use_cache=False).logits[0]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return {
        "logits": logits.tolist(),
        "batch": batch,
        "fixed": fixed.tolist(),
        "alone": alone,
        "text_ids": tokenizer(text)["input_ids"],
        "is_bare": not {"peft", "accelerate", "trenchcoat_trainer", "trenchcoat_api"} & set(sys.modules),
    }


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    told = [
        answer(Path(folder), asked["prompts"], asked["new_tokens"], asked["text"])
        for folder in asked["folders"]
    ]
    Path(sys.argv[2]).write_text(json.dumps({"version": transformers.__version__, "told": told}))
