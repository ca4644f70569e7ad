"""The numbers, the report and the checkpoint at the end."""

import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from trenchcoat_api.history import report_prefix
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.results import Evaluation, Measured, Perplexity
from trenchcoat_api.summary import StageTime, Summary

from demo.environment import BUCKET, DemoError, Environment
from demo.inputs import client

GPU = "nvidia.com/gpu"
PROMPTS = ("def __init__(self", "import", "    for name, value in sorted(self.items()):\n        if name")
GENERATE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, *prompts = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, padding_side="left")
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
out = model.generate(**inputs, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.pad_token_id)
print("\\n---\\n".join(tokenizer.batch_decode(out, skip_special_tokens=True)))
"""


def collect_results(environment: Environment, name: str) -> tuple[Summary, str]:
    """The summary and the URI of the exported checkpoint, from the Trenchcoat's status."""
    status = environment.get("trenchcoat", name)["status"]
    return summarize(environment, status), status["exportUri"]


def summarize(environment: Environment, status: dict[str, Any]) -> Summary:
    """The numbers of a run that is complete but for its export."""
    nodes = environment.get("nodes")["items"]
    return Summary.from_results(
        Measured(
            [Perplexity.model_validate(item) for item in status["perplexities"]],
            Evaluation.model_validate(status["evaluation"]),
        ),
        stages=[StageTime(row["name"], wall_seconds(row)) for row in status["stages"]],
        stored_bytes=status["storedBytes"],
        crias=len(status["crias"]),
        gpus=sum(int(node["status"]["allocatable"].get(GPU, 0)) for node in nodes),
        max_crias_running=status["maxCriasRunning"],
    )


def wall_seconds(row: dict[str, Any]) -> float:
    """From a stage's first start to its end; what its artifact took when it was made earlier."""
    if row.get("source") == "Reused" or not row.get("startedAt"):
        return float(row.get("seconds") or 0)
    started, completed = (datetime.fromisoformat(row[name]) for name in ("startedAt", "completedAt"))
    return (completed - started).total_seconds()


def load_and_generate(environment: Environment, export_uri: str, folder: Path) -> str:
    """Download the checkpoint; a fresh Python with transformers alone goes on from all prompts in a batch."""
    download(environment, export_uri, folder)
    result = subprocess.run(
        [sys.executable, "-c", GENERATE, str(folder), *PROMPTS],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise DemoError(f"the exported checkpoint in {folder} does not load: {result.stderr.strip()[-2000:]}")
    return result.stdout


def download_report(environment: Environment, name: str, target: Path) -> None:
    """Fetch the report that the stages wrote beside their artifacts."""
    prefix = report_prefix(Trenchcoat.model_validate(environment.get("trenchcoat", name)).spec, name)
    with environment.store_address() as address:
        store_client = client(environment, address)
        store_client.fget_object(
            bucket_name=BUCKET, object_name=f"{prefix}report.html", file_path=str(target)
        )


def download(environment: Environment, export_uri: str, folder: Path) -> None:
    """Fetch every object below an s3:// URI of the store's bucket into a folder."""
    prefix = export_uri.removeprefix(f"s3://{BUCKET}/")
    shutil.rmtree(folder, ignore_errors=True)
    with environment.store_address() as address:
        store_client = client(environment, address)
        for item in store_client.list_objects(bucket_name=BUCKET, prefix=prefix, recursive=True):
            name = item.object_name or ""
            target = folder / name.removeprefix(prefix)
            store_client.fget_object(bucket_name=BUCKET, object_name=name, file_path=str(target))
