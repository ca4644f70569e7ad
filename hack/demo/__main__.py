"""The main job from beginning to end: a cluster, the operator, a teacher, one Trenchcoat, the numbers.

make demo                                   on a cluster made here
make demo KUBECONFIG=... REGISTRY=...       on one that you have
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "hack"))

from demo.environment import DemoError, Environment, foreign, local  # noqa: E402
from demo.inputs import make_teacher, upload  # noqa: E402
from demo.install import install_operator  # noqa: E402
from demo.results import collect_results, download_report, load_and_generate  # noqa: E402
from demo.turnover import describe_turnover  # noqa: E402
from demo.watch import follow  # noqa: E402

NAMESPACE = "trenchcoat-demo"
EXAMPLE = REPO / "examples" / "tiny.yaml"
OUTPUT = REPO / "build" / "demo"
PYTORCH_JOBS = "pytorchjobs.kubeflow.org"
SERVE = f"    make serve MODEL={(OUTPUT / 'model').relative_to(REPO)}"


def main() -> int:
    """Run the demo and return its exit code."""
    arguments = parse()
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    started = time.monotonic()
    try:
        run(arguments, console)
    except DemoError as error:
        Console(stderr=True).print(f"[bold red]demo:[/] {error}", highlight=False)
        return 1
    console.print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kubeconfig", type=Path, help="use this cluster in place of making one")
    parser.add_argument(
        "--registry", help="with --kubeconfig: REGISTRY/operator:TAG and REGISTRY/trainer:TAG"
    )
    parser.add_argument("--tag", default="latest", help="with --registry: the images' tag")
    return parser.parse_args()


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Every step in turn."""
    step(console, "cluster", "half a minute once all is built; what is built first says how long it takes")
    environment = prepare(arguments, console)
    step(console, "operator", "some seconds, half a minute on a busy machine")
    install_operator(environment, console)
    step(console, "teacher and text", "a few seconds, and two minutes the first time, to train the teacher")
    make_teacher(OUTPUT / "store")
    upload(environment, OUTPUT / "store", fresh_prefix=True)
    step(console, "kubectl apply -f examples/tiny.yaml", "5 to 7 minutes; the column ETA says what is left")
    by_operator = bool(environment.command("kubectl", "get", "crd", PYTORCH_JOBS, "--ignore-not-found"))
    if not by_operator:
        console.print(
            "The cluster knows no PyTorchJob: stages of several pods run as Indexed Jobs "
            "(spec.scheduling.distributed), with the same results."
        )
    name = apply_example(environment, by_operator=by_operator)
    follow(environment, name, console)
    step(console, "result", "some seconds")
    summary, export_uri = collect_results(environment, name)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "summary.json").write_text(summary.to_json())
    download_report(environment, name, OUTPUT / "report.html")
    console.print(summary.render())
    console.print(describe_turnover(environment, name, summary.gpus))
    text = load_and_generate(environment, export_uri, OUTPUT / "model")
    console.print(
        "\nThe student, downloaded and loaded by transformers, goes on from a batch of prompts of unequal "
        f"length:\n{text}\nServe it with vLLM on this machine's CPU (docs/serving.md):\n{SERVE}",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"\nThe report, for a browser:\n    {OUTPUT / 'report.html'}", markup=False)
    console.print(look_further(environment, name, own=arguments.kubeconfig is None))


def step(console: Console, name: str, takes: str) -> None:
    """Begin a part of the demo, with what it takes on two idle cores."""
    console.rule(name, align="left")
    console.print(f"[dim]takes {takes}[/]")


def prepare(arguments: argparse.Namespace, console: Console) -> Environment:
    """The cluster to work on, with everything that stands beside the operator."""
    if arguments.kubeconfig is None:
        return local(NAMESPACE)
    if arguments.registry is None:
        raise DemoError("--kubeconfig needs --registry: where the cluster finds our two images (see README)")
    return foreign(arguments.kubeconfig, arguments.registry, arguments.tag, NAMESPACE)


def apply_example(environment: Environment, *, by_operator: bool) -> str:
    """Apply examples/tiny.yaml anew and return the Trenchcoat's name."""
    environment.kubectl("delete", "trenchcoat", "tiny", "--ignore-not-found", "--wait=true", "--timeout=300s")
    environment.kubectl("apply", "-f", "-", stdin=example(by_operator=by_operator))
    return "tiny"


def example(*, by_operator: bool) -> str:
    """examples/tiny.yaml as JSON, for a cluster with a training operator or without."""
    body: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    if not by_operator:
        body["spec"]["scheduling"] = {"distributed": "IndexedJob"}
    return json.dumps(body)  # as YAML, learning rates would be numbers to kubectl


def look_further(environment: Environment, name: str, *, own: bool) -> str:
    """Commands that show more; `own` where the cluster was made here."""
    kinds = "jobs,pytorchjobs,pods" if own else "jobs,pods"
    path = f" PATH={environment.path.split(':')[0]}:$PATH" if own else ""
    lines = [
        f"export KUBECONFIG={environment.kubeconfig}{path}",
        f"kubectl -n {environment.namespace} describe trenchcoat {name}",
        f"kubectl -n {environment.namespace} get {kinds} -l trenchcoat.dev/name={name}",
        f"less {(OUTPUT / 'summary.json').relative_to(REPO)}",
        "make cluster-down      removes the cluster made here" if own else "",
    ]
    return "\nTo look further:\n" + "\n".join(f"  {line}" for line in lines if line)


if __name__ == "__main__":
    sys.exit(main())
