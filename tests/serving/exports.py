"""A random student as the checkpoint that the export stage leaves, of sizes that vLLM takes."""

from pathlib import Path
from typing import Any

import torch
from trenchcoat_api.spec import Attention
from trenchcoat_trainer.models import TrenchcoatLlamaForCausalLM
from trenchcoat_trainer.stages import export
from trenchcoat_trainer.tensors.serialization import pack

from tests.trainer.helpers.tiny_student import make_student, make_teacher

VOCABULARY = 512
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "head_dim": 32,
    "max_position_embeddings": 4096,
}


def write_export(
    folder: Path, attention: Attention, layers: int = 4, **changes: Any
) -> TrenchcoatLlamaForCausalLM:
    """Write the checkpoint; returns its student, fp32. `changes` are the teacher's configuration's."""
    student = make_student(make_teacher(layers=layers, **SIZES, **changes), attention)
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(export.config_json(student.config))
    for name, text in export.code(student.config).items():
        (folder / name).write_bytes(text)
    tensors = {name: tensor.contiguous() for name, tensor in student.state_dict().items()}
    if student.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    (folder / "model.safetensors").write_bytes(pack(tensors, {"format": "pt"}))
    return student


def prompts(lengths: list[int], seed: int = 1) -> list[list[int]]:
    """Return random token ids, a list of each length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def greedy(student: TrenchcoatLlamaForCausalLM, ids: list[list[int]], tokens: list[int]) -> list[list[int]]:
    """Return what transformers' generate says to each prompt alone."""
    answers = []
    for prompt, wanted in zip(ids, tokens, strict=True):
        whole = student.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=wanted,
            do_sample=False,
            pad_token_id=1,
            eos_token_id=None,
        )
        answers.append(whole[0, len(prompt) :].tolist())
    return answers
