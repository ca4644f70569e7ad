"""How the teacher and the student go on with held-out text, side by side: for people to read, no measure."""

import unicodedata
from dataclasses import dataclass

import torch
from trenchcoat_api import texts
from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.decode_state import ITEM_BYTES
from trenchcoat_api.results import ModelForm
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.checkpoints.stored_tokenizer import stored_tokenizer
from trenchcoat_trainer.data import TokenData
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.stages.evaluate.whole import whole_model

PROMPT_TOKENS, NEW_TOKENS = 48, 32
"""At most: the prompt is half of a sequence where that is shorter."""
FORMS = (ModelForm.TEACHER, ModelForm.STITCHED)
MOST_BYTES = {"cuda": 24_000_000_000, "cpu": 1_000_000_000}
"""Of weights: a larger model would be read from the store for longer than its samples are worth."""
ROOM = 1.25
"""Of a GPU's memory, as often as the weights take must be free."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A beginning of held-out text, and how it goes on."""

    prompt: str
    text: str
    """What really follows."""
    continuations: dict[str, str]
    """By the name of the form, greedily chosen."""


def why_no_samples(spec: TrenchcoatSpec, model: ModelFacts, device: torch.device) -> str:
    """Say why the whole model is not asked for samples; empty where it is, or none are wanted."""
    if not spec.evaluate.samples:
        return ""
    needed, most = model.parameters * ITEM_BYTES[spec.dtype], MOST_BYTES.get(device.type, 0)
    if device.type == "cuda":
        most = min(most, int(torch.cuda.mem_get_info(device)[0] / ROOM))
    if needed <= most:
        return ""
    return (
        f"samples: they take the whole model, whose weights are {texts.size(needed)}; here it may have "
        f"{texts.size(most)}"
    )


@torch.no_grad()
def take_samples(context: StageContext, device: torch.device) -> list[Sample]:
    """Have the teacher and the student go on with beginnings of held-out sequences, as many as the spec says.

    Greedy, and past the end of a text, so that the same weights give the same samples.

    Raises:
        PreemptedError: a stop was requested.
    """
    data = TokenData(context, "held_out")
    count = min(context.spec.evaluate.samples, data.sequences)
    if not count:
        return []
    prompt_tokens = min(PROMPT_TOKENS, data.sequence_length // 2)
    new_tokens = min(NEW_TOKENS, data.sequence_length - prompt_tokens)
    first = [index * data.sequences // count for index in range(count)]
    rows = torch.cat([data.read(index, index + 1) for index in first]).long()
    prompts = rows[:, :prompt_tokens]
    found: dict[str, torch.Tensor] = {}
    for form in FORMS:
        context.stop.check()
        model = whole_model(context, form, device)
        tokens = model.generate(
            prompts.to(device),
            attention_mask=torch.ones_like(prompts, device=device),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        found[form.value] = tokens[:, prompt_tokens:].cpu()
        del model
    tokenizer = stored_tokenizer(context)

    def words(tokens: torch.Tensor) -> str:
        return printable(tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False))

    return [
        Sample(
            prompt=words(prompts[index]),
            text=words(rows[index, prompt_tokens : prompt_tokens + new_tokens]),
            continuations={form: words(tokens[index]) for form, tokens in found.items()},
        )
        for index in range(count)
    ]


def printable(text: str) -> str:
    """A text with U+FFFD for what no page can show: control characters but ends of lines and tabs."""
    return "".join(
        "\ufffd" if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t" else letter
        for letter in text
    )
