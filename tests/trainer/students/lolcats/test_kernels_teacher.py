"""The teacher's attention beside the kernels, where torch has no kernel that gives the sums."""

import math

import pytest
import torch
from attention_problems import problem
from trenchcoat_trainer.students.lolcats import naive

teacher = pytest.importorskip("trenchcoat_trainer.students.lolcats.kernels.teacher", reason="needs Triton")


@pytest.mark.parametrize("tokens", [1, 16, 50])
def test_output_and_sums_by_rows_are_the_whole_maps(tokens, monkeypatch):
    monkeypatch.setattr(teacher, "ROWS", 16)
    q, k, v, *_ = problem(tokens, batch=2, heads=4, kv_heads=2, dtype=torch.float32)
    output, lse2 = teacher.softmax_attention(q, k, v)
    seen = naive.causal_mask(tokens, q.device)
    scores = naive.scores(q.double(), k.double()).masked_fill(~seen, float("-inf"))
    expected = scores.softmax(-1) @ v.double().repeat_interleave(2, 1)
    torch.testing.assert_close(output, expected.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse2, (scores.logsumexp(-1) / math.log(2)).float(), rtol=1e-4, atol=1e-5)
