"""What the benchmark of several GPUs works out of what it has seen."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "several_gpus")


@pytest.fixture(scope="module")
def part():
    """Import a module of that folder by its name, as the benchmark does."""
    sys.path.insert(0, FOLDER)
    names: list[str] = []

    def load(name: str):
        names.append(name)
        return importlib.import_module(name)

    yield load
    sys.path.remove(FOLDER)
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("seconds", "machines", "shortest"),
    [
        ([1.0] * 14, 2, 7.0),
        ([1.0] * 14, 4, 4.0),  # 3.5 by their sum
        ([5.0, 1.0, 1.0], 2, 5.0),
        ([3.0, 3.0, 3.0, 1.0], 2, 6.0),
    ],
)
def test_no_schedule_is_shorter_than_the_bound(part, seconds, machines, shortest) -> None:
    assert part("programs").bound(seconds, machines) == shortest


def kernel(name: str, first: float, last: float) -> dict:
    return {"cat": "kernel", "name": name, "ts": first, "dur": last - first}


def test_it_waits_for_nccl_where_nothing_else_runs(part) -> None:
    events = [
        kernel("gemm", 0, 40),
        kernel("ncclDevKernel_AllGather", 20, 60),
        kernel("gemm", 50, 70),
        kernel("gemm", 90, 100),
    ]
    found = part("tracing").waits(events, 2)
    assert found["traced_step_ms"] == pytest.approx(0.05)
    assert found["computing_share"] == pytest.approx(0.7)
    assert found["nccl_share"] == pytest.approx(0.4)
    assert found["waits_for_nccl_share"] == pytest.approx(0.1)
    assert found["idle_share"] == pytest.approx(0.2)


def test_bytes_are_those_that_arrive(part) -> None:
    moved = part("tracing").moved
    operator = {"Input type": ["c10::BFloat16", "c10::BFloat16"], "Input Dims": [[8, 1000], [1000]]}
    events = [{"name": "c10d::_allgather_base_", "args": operator}] * 2
    assert moved(events, 2) == {"c10d::_allgather_base_": pytest.approx(16000 / 1e9)}
    told = {"Collective name": "_allgather_base", "Out msg nelems": 500, "dtype": "Float"}
    events.append({"name": "record_param_comms", "args": told})
    assert moved(events, 1) == {"_allgather_base": pytest.approx(2000 / 1e9)}
