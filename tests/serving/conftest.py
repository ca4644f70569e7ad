"""vLLM's real engine on the CPU, in the environment of `make test-serving`; skipped without it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

REPO = Path(__file__).resolve().parents[2]
PROGRAMS = REPO / ".venv-serving" / "bin"

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of vLLM's programs."""
    if not (PROGRAMS / "vllm").exists():
        pytest.skip("vLLM is not installed: make test-serving does it")
    return PROGRAMS


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of vLLM's processes: what they cache stays in a folder of the test, and they tell nobody."""
    folder = tmp_path_factory.mktemp("vllm")
    own = {
        "HOME": str(folder),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        "VLLM_CONFIG_ROOT": str(folder / "config"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return os.environ | own


def run_engines(
    asked: list[dict[str, Any]], programs: Path, environment: dict[str, str], folder: Path
) -> list[dict[str, Any]]:
    """Run `engine.py` on what is asked; returns what each engine told."""
    (folder / "asked.json").write_text(json.dumps(asked))
    command = [
        programs / "python",
        Path(__file__).with_name("engine.py"),
        folder / "asked.json",
        folder / "told.json",
    ]
    with (folder / "log").open("wb") as log:
        # In one process, or each engine would import all of vLLM twice more.
        ended = subprocess.run(
            command,
            env={"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=900,
            check=False,
        )
    assert ended.returncode == 0, (folder / "log").read_text()[-4000:]
    return json.loads((folder / "told.json").read_text())
