"""The export under the transformers that vLLM brings, an older one, without this package: the same tokens."""

import json
import subprocess

import pytest

from tests.serving.exports import greedy, prompts, write_export
from tests.serving.test_engine import STUDENTS

GENERATE = """
import json
import sys
for name in ("trenchcoat_trainer", "trenchcoat_api", "vllm"):
    sys.modules[name] = None  # as on a machine without them
import torch
from transformers import AutoModelForCausalLM
folder, asked = sys.argv[1:]
prompts = json.loads(asked)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
longest = max(map(len, prompts))
ids = torch.tensor([[1] * (longest - len(prompt)) + prompt for prompt in prompts])
mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
settings = dict(max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=1)
print(json.dumps(model.generate(ids, attention_mask=mask, **settings)[:, longest:].tolist()))
"""


@pytest.mark.parametrize("name", ["window, one wide and one softmax layer", "lolcats"])
def test_a_batch_of_prompts_padded_at_the_left(programs, environment, tmp_path, name):
    student, asked = write_export(tmp_path / "student", STUDENTS[name]), prompts([1, 31, 64, 65, 130])
    ended = subprocess.run(
        [programs / "python", "-c", GENERATE, tmp_path / "student", json.dumps(asked)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert json.loads(ended.stdout.splitlines()[-1]) == greedy(student, asked, [16] * 5)
