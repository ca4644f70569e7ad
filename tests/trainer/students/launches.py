"""Launches of every kernel that computes attention, as a model of either size of heads makes them."""

import torch
from trenchcoat_trainer.students import Heads
from trenchcoat_trainer.students.lolcats import kernels
from trenchcoat_trainer.students.lolcats import prompt_kernel as lolcats_prompt
from trenchcoat_trainer.students.lolcats.hybrid import HybridInputs
from trenchcoat_trainer.students.window import prompt_kernel as window_prompt

TOKENS, HEADS, KV_HEADS, FEATURES, WINDOW = 256, 4, 2, 64, 64


def heads_of(size):
    return [
        torch.zeros(1, count, TOKENS, size, dtype=torch.bfloat16) for count in (HEADS, KV_HEADS, KV_HEADS)
    ]


def prompts():
    """Prompts of either form: of one length and of several."""
    for size in (64, 128):
        x = HybridInputs(*heads_of(size), *maps(size), WINDOW)
        window_prompt.attend(x.q, x.k, x.v, 128, 4)
        lolcats_prompt.attend(x, TOKENS - WINDOW)
        lolcats_prompt.attend(x, torch.tensor([TOKENS - WINDOW]))


def training():
    """Attention transfer, and LoRA by Cria on queries and values."""
    for size in (64, 128):
        for trained in (("w_q", "w_k", "window_factor"), ("q", "v")):
            tensors = [*heads_of(size), *maps(size)]
            names = ("q", "k", "v", "w_q", "w_k", "window_factor")
            for name, tensor in zip(names, tensors, strict=True):
                tensor.requires_grad_(name in trained)
            x = HybridInputs(*tensors, WINDOW)
            teacher = Heads(x.q, x.k, x.v) if "q" not in trained else Heads(*heads_of(size))
            mse, xent, _ = kernels.distill_loss(x, teacher)
            (mse + xent).backward()


def maps(size):
    return torch.zeros(HEADS, size, FEATURES), torch.zeros(HEADS, size, FEATURES), torch.zeros(HEADS)
