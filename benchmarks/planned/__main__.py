"""Does the plan by the rates of one run tell what another takes?

    trenchcoat run ONE.yaml --store build/one
    trenchcoat run OTHER.yaml --store build/other --summary other.json
    trenchcoat rates ONE.yaml --store build/one > rates.yaml
    python benchmarks/planned OTHER.yaml build/other other.json --rates rates.yaml

Seconds of each stage and of all, as they were planned and as the run's summary tells them.
"""

import argparse
import json
from pathlib import Path

from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.plan import Given, make_plan
from trenchcoat_api.planning.rates import Rates
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_trainer.local.planning import read_model


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", type=Path, help="the run that is planned")
    parser.add_argument("store", type=Path, help="its store, for the model")
    parser.add_argument("summary", type=Path, help="what it took")
    parser.add_argument("--rates", type=Path, required=True)
    parser.add_argument("--gpus", type=int, help="Crias at one time, where the spec does not tell")
    wanted = parser.parse_args()
    spec = Trenchcoat.from_yaml(wanted.spec).spec
    outline = Outline.of(spec, read_model(spec, wanted.store))
    plan = make_plan(outline, Given(rates=Rates.load(wanted.rates), gpus=wanted.gpus))
    took = {row["name"]: row["seconds"] for row in json.loads(wanted.summary.read_text())["stages"]}
    rows = [(row.name.value, row.seconds, took[row.name.value]) for row in plan.stages]
    # What is beside another stage takes no time of its own.
    alone = sum(seconds for name, seconds in took.items() if name != "shard" or "collect" not in took)
    print("| stage | planned, s | took, s | off |\n|---|---:|---:|---:|")
    for name, planned, seconds in [*rows, ("all", plan.seconds, alone)]:
        print(f"| {name} | {planned:.1f} | {seconds:.1f} | {planned / seconds - 1:+.0%} |")


if __name__ == "__main__":
    main()
