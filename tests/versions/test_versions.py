"""An export under the oldest and newest transformers 4 and 5, which alone are installed: the same model."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from trenchcoat_api.spec import Attention, Form, Wide
from trenchcoat_trainer.models.configuration_trenchcoat import TRIED
from trenchcoat_trainer.models.modeling_trenchcoat import ADAPTERS
from trenchcoat_trainer.stages import export
from trenchcoat_trainer.stages.export import weights

from tests.serving.exports import prompts, write_export
from tests.trainer.helpers.trainer_samples import ROPE, save_tokenizer

REPO = Path(__file__).resolve().parents[2]
WINDOW = Attention(form=Form.WINDOW, window=8, first_tokens=2, keep_softmax_layers=[1])
STUDENTS = {
    "window, one wide and one softmax layer": WINDOW.model_copy(update={"wide": Wide(layers=[2], window=40)}),
    "lolcats": Attention(window=8, feature_dim=16),
}
# Positions far apart, and neither transformers' default theta nor a plain scaling.
ROPES = {
    "plain": {"rope_type": "default", "rope_theta": 500.0},
    "llama3": ROPE | {"rope_theta": 700.0},
    "linear": {"rope_type": "linear", "rope_theta": 900.0, "factor": 4.0},
}
CASES = [(student, rope, "merged") for student in STUDENTS for rope in ROPES]
CASES += [(student, "llama3", form) for student in STUDENTS for form in ("delta", "adapters")]
NEW_TOKENS = 12
TEXT = "the quick brown fox<|said|> — ü"
PROMPTS = prompts([1, 31, 64, 65, 130])


def take_apart(folder, form, student):
    """Make a delta of a merged export, or what was trained alone beside its teacher; adapters are random.

    The student becomes what the latter give, for W - B A + B A is not W to the last bit.
    """
    merged = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    adapted = {name for name in merged if name.endswith("_proj.weight") and "self_attn" in name}
    own = {name for name in merged if "self_attn" in name} - adapted
    generator, trained = torch.Generator().manual_seed(0), {name: merged[name] for name in own}
    teacher = {name: merged[name] for name in merged if name not in own}
    for name in adapted:
        outputs, inputs = merged[name].shape
        a = torch.randn(4, inputs, generator=generator) / 16
        b = torch.randn(outputs, 4, generator=generator) / 16
        teacher[name] = merged[name] - b @ a
        stem = name.removesuffix(".weight")
        trained |= {f"{stem}.lora_A": a, f"{stem}.lora_B": b}
    if form == "adapters":
        (folder / "teacher").mkdir()
        save_file(teacher, folder / "teacher" / "model.safetensors", weights.FORMAT)
        shutil.copy(folder / "config.json", folder / "teacher")
        save_file(trained, folder / ADAPTERS, weights.FORMAT)
        student.load_state_dict(teacher, strict=False)
        student.change_by(trained)
        return
    own_file, base = f"{weights.STUDENTS}-00001-of-00001.safetensors", f"{weights.TEACHERS}model.safetensors"
    save_file({name: merged[name] for name in own | adapted}, folder / own_file, weights.FORMAT)
    save_file(teacher, folder / base, weights.FORMAT)
    index = {name: own_file if name in own | adapted else base for name in merged}
    (folder / weights.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A folder for each case, and its student."""
    folder, students = tmp_path_factory.mktemp("exports"), {}
    for number, (student, rope, form) in enumerate(CASES):
        target = folder / f"student-{number}"
        changes = {"rope_parameters": dict(ROPES[rope]), "tie_word_embeddings": student == "lolcats"}
        students[target] = write_export(target, STUDENTS[student], **changes)
        save_tokenizer(target)
        if form != "merged":
            take_apart(target, form, students[target])
        settings = json.loads((target / export.TOKENIZER_CONFIG).read_text())
        settings["extra_special_tokens"] = ["<|said|>"]  # as transformers 5 writes them
        teachers = json.dumps(settings).encode()
        (target / export.TOKENIZER_CONFIG).write_bytes(export.tokenizer_config(teachers))
    return students


@pytest.fixture(scope="module", params=TRIED)
def told(request, exports, tmp_path_factory):
    """What one version of transformers makes of all exports."""
    made = subprocess.run(
        [REPO / "hack/transformers-env", request.param], capture_output=True, text=True, check=True
    )
    folder = tmp_path_factory.mktemp("told")
    asked = {"folders": [str(path) for path in exports], "prompts": PROMPTS, "new_tokens": NEW_TOKENS}
    asked["text"] = TEXT
    (folder / "asked.json").write_text(json.dumps(asked))
    ended = subprocess.run(
        [
            made.stdout.strip(),
            Path(__file__).with_name("generate.py"),
            folder / "asked.json",
            folder / "told.json",
        ],
        env={
            "PATH": os.environ["PATH"],
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    answers = json.loads((folder / "told.json").read_text())
    assert answers["version"] == request.param
    return dict(zip(CASES, answers["told"], strict=True))


@pytest.fixture(scope="module")
def expected(exports):
    """What the pinned version makes of them."""
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    found = {}
    for case, student in zip(CASES, exports.values(), strict=True):
        with torch.no_grad():
            logits = student(torch.tensor([max(PROMPTS, key=len)]), use_cache=False).logits[0]
            greedy = [student.generate(torch.tensor([p]), **settings)[0, len(p) :].tolist() for p in PROMPTS]
        found[case] = {"logits": logits, "greedy": greedy}
    return found


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_logits_are_those_of_the_pinned_version(case, told, expected):
    logits = torch.tensor(told[case]["logits"])
    torch.testing.assert_close(logits, expected[case]["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_greedy_tokens_alone_and_in_a_padded_batch(case, told, expected):
    assert told[case]["alone"] == expected[case]["greedy"]
    assert told[case]["batch"] == expected[case]["greedy"]
    assert told[case]["fixed"] == expected[case]["greedy"]


def test_the_tokenizer_gives_the_same_ids(told, exports):
    for case, folder in zip(CASES, exports, strict=True):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        assert "<|said|>" in tokenizer.all_special_tokens
        assert told[case]["text_ids"] == tokenizer(TEXT)["input_ids"]


def test_nothing_else_was_imported(told):
    assert all(answers["is_bare"] for answers in told.values())


def test_the_logits_tell_one_rope_from_another(expected):
    """Or the tests above could not fail."""
    logits = [expected["lolcats", rope, "merged"]["logits"] for rope in ROPES]
    assert all((one - logits[0]).abs().max() > 0.1 for one in logits[1:])


def test_the_locks_are_those_of_the_versions_that_the_code_names():
    assert sorted(path.stem for path in (REPO / "requirements/transformers").glob("*.txt")) == sorted(TRIED)
    (line,) = [
        line for line in (REPO / "Makefile").read_text().splitlines() if line.startswith("TRANSFORMERS :=")
    ]
    assert tuple(line.partition(":=")[2].split()) == TRIED
