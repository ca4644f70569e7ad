"""The operator among many Trenchcoats, on a real API server.

Real: etcd, API server, controller manager, scheduler, training operator, MinIO and the operator, a process of
its own here. Played: the nodes and their pods by kwok, and the stage programs' progress and manifests by
player.py. Nothing is computed, so that what is measured is the operator.

Three phases: `run` applies all Trenchcoats at once and waits until the last has succeeded (or for --longest);
`idle` watches when all is done; `churn` deletes each that has succeeded and applies another in its place.
"""

import argparse
import json
import sys
from pathlib import Path

from bench import Bench
from report import report

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    wanted = parser().parse_args()
    with Bench(wanted) as bench:
        phases = [bench.run()]
        if wanted.idle:
            phases.append(bench.idle(wanted.idle))
        if wanted.churn:
            phases.append(bench.churn(wanted.churn, wanted.alive))
        result = {"setting": bench.setting(), "phases": phases}
    (wanted.out.parent).mkdir(parents=True, exist_ok=True)
    wanted.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    wanted.out.with_suffix(".md").write_text(report(result))
    sys.stdout.write(report(result))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--cluster", default="tc-scale", help="name of the local cluster (default: tc-scale)")
    top.add_argument("--keep", action="store_true", help="leave the cluster there, for another run")
    top.add_argument(
        "--trenchcoats", type=int, default=200, metavar="N", help="of 14 Crias each (default: 200)"
    )
    top.add_argument("--nodes", type=int, default=50, metavar="N", help="kwok nodes of 8 GPUs (default: 50)")
    top.add_argument(
        "--stage-seconds", type=float, default=15, metavar="S", help="of each stage (default: 15)"
    )
    top.add_argument(
        "--longest", type=float, metavar="S", help="end `run` then, whoever has succeeded (default: never)"
    )
    top.add_argument("--idle", type=float, default=60, metavar="S", help="length of `idle`; 0 leaves it out")
    top.add_argument(
        "--churn", type=float, default=300, metavar="S", help="length of `churn`; 0 leaves it out"
    )
    top.add_argument("--alive", type=int, default=40, metavar="N", help="Trenchcoats alive during `churn`")
    top.add_argument("--workers", type=int, default=4, metavar="N", help="TRENCHCOAT_WORKERS (default: 4)")
    top.add_argument("--out", type=Path, default=RESULTS / "scale", metavar="FILE")
    return top


if __name__ == "__main__":
    main()
