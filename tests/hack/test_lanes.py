"""Lanes: what runs beside what, what a failure or a signal ends, and what is told of the minutes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from lanes.lane import Lane, check, members
from lanes.report import details, failures, table
from lanes.runner import Run, Stopped
from local_cluster import components, images

from tests.waiting import until

REPO = Path(__file__).parents[2]


def shell(name: str, *scripts: str, after: tuple[str, ...] = (), **more: object) -> Lane:
    return Lane(name, tuple(("bash", "-c", script) for script in scripts), after, **more)  # type: ignore[arg-type]


def run(tmp_path: Path, *lanes: Lane, limit: float | None = None) -> tuple[Run, list[str]]:
    told: list[str] = []
    return Run(lanes, tmp_path / "logs", cwd=tmp_path, tell=told.append, limit=limit), told


MEET = "touch {own}; for _ in {{1..1200}}; do [ -e {other} ] && exit 0; sleep 0.1; done; exit 1"


def test_lanes_that_do_not_need_each_other_run_side_by_side(tmp_path: Path) -> None:
    made, _ = run(
        tmp_path, shell("a", MEET.format(own="a", other="b")), shell("b", MEET.format(own="b", other="a"))
    )
    assert made.go() == 0


def test_a_lane_starts_when_those_that_it_waits_for_have_ended(tmp_path: Path) -> None:
    made, told = run(
        tmp_path,
        shell("first", "sleep 0.5; echo one", "echo two; touch there"),
        shell("other", "true"),
        shell("then", "test -e there; echo $? $WORD", after=("first", "other"), env={"WORD": "said"}),
    )
    assert made.go() == 0
    assert [line.replace(" ", "") for line in told] == ["first|one", "first|two", "then|0said"]
    assert [running.lane.name for running in made.ran] == ["first", "other", "then"]


def test_lines_come_whole_and_bars_of_progress_as_they_ended(tmp_path: Path) -> None:
    made, told = run(tmp_path, shell("a", r"printf 'ha'; sleep 1; printf 'lf\n\n10%%\r99%%\r\nlast'"))
    assert made.go() == 0
    assert told == ["a | half", "a | ", "a | 99%", "a | last"]


# In steps: bash, too, may note a signal just before it waits, and wait all the same.
UNTIL_TOLD = "while true; do sleep 1; done"
TIDY = f"trap 'echo cleared; exit 130' INT; touch ready; {UNTIL_TOLD}"
WHEN_READY = "until [ -e ready ]; do sleep 0.1; done;"


def sessions(made: Run) -> list[int]:
    return [pid for running in made.ran for pid in members(running._process.pid)]


def test_a_failure_ends_the_others_which_clear_away_first(tmp_path: Path) -> None:
    made, told = run(
        tmp_path,
        shell("long", TIDY),
        shell("bad", f"{WHEN_READY} echo why; exit 3", "touch never"),
        shell("after it", "touch never", after=("bad",)),
    )
    assert made.go() == 1  # and not after the ten minutes of a test, for the other one would go on for ever
    assert made.failed is not None and made.failed.lane.name == "bad"
    assert "bad failed: exit code 3" in told
    assert "cleared" in made.ran[0].log.read_text()
    assert not (tmp_path / "never").exists()
    assert sessions(made) == []


def test_what_a_lane_leaves_running_is_ended(tmp_path: Path) -> None:
    made, _ = run(tmp_path, shell("a", "sleep 600 & trap '' INT; (sleep 600) & exit 0"))
    assert made.go() == 0
    assert sessions(made) == []


def test_a_lane_that_heeds_nothing_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lanes.runner.STOP_SECONDS", 1.0)
    stubborn = "trap '' INT TERM; touch ready; while true; do sleep 0.1; done"
    made, _ = run(tmp_path, shell("stubborn", stubborn), shell("bad", f"{WHEN_READY} exit 1"))
    assert made.go() == 1
    assert sessions(made) == []


def test_at_the_limit_everything_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = run(tmp_path, shell("long", TIDY), limit=1.0)
    # The limit comes when the lane can clear away, however long that takes to start.
    ready = (tmp_path / "ready").exists
    clock = SimpleNamespace(monotonic=lambda: made.began + 2 * ready(), sleep=time.sleep)
    monkeypatch.setattr("lanes.runner.time", clock)
    with pytest.raises(Stopped, match="not done after 0 minutes"):
        made.go()
    assert "cleared" in made.ran[0].log.read_text()
    assert sessions(made) == []


GIVEN_WAY = """
for _ in $(seq 600); do
  [ "$(nice)" = 7 ] && { [ ! -e /proc/self/autogroup ] || grep -q "nice 7$" /proc/self/autogroup; } && break
  sleep 0.1
done;
"""
"""It has begun by the time that it is told to; a minute is enough for that."""


def test_a_lane_gives_way_to_others(tmp_path: Path) -> None:
    made, told = run(tmp_path, shell("a", f"{GIVEN_WAY} nice; cat /proc/self/autogroup", nice=7))
    assert made.go() == 0
    assert told[0] == "a | 7"
    if Path("/proc/self/autogroup").exists():
        assert told[1].endswith(" nice 7")


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {hack!r})
from lanes.lane import Lane
from lanes.runner import Run, Stopped
try:
    Run([Lane("long", (("bash", "-c", {tidy!r}),))], Path("logs"), cwd=Path("."), tell=print).go()
except Stopped as stopped:
    print(stopped)
    sys.exit(stopped.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything_and_a_second_one_does_not_cut_it_short(
    tmp_path: Path, number: signal.Signals
) -> None:
    clear = "touch clearing; until [ -e told-twice ]; do sleep 0.1; done; echo cleared; exit 130"
    tidy = f"trap '{clear}' INT; touch ready; {UNTIL_TOLD}"
    program = PROGRAM.format(hack=str(REPO / "hack"), tidy=tidy)
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        until((tmp_path / "ready").exists, 120, "the lane runs")
        process.send_signal(number)
        until((tmp_path / "clearing").exists, 120, "the lane clears away")
        process.send_signal(number)
        (tmp_path / "told-twice").touch()
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}" in said
    assert "cleared" in (tmp_path / "logs" / "long.log").read_text()


STARTED_SLOWLY = """
import time
import lanes.runner
start = lanes.runner.Running
def slowly(*arguments):
    running = start(*arguments)
    time.sleep(1)
    return running
lanes.runner.Running = slowly
"""


def test_a_signal_while_a_lane_is_being_started_ends_that_lane_too(tmp_path: Path) -> None:
    program = PROGRAM.format(hack=str(REPO / "hack"), tidy=TIDY)
    program = program.replace("try:\n", STARTED_SLOWLY + "try:\n")
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        until((tmp_path / "ready").exists, 120, "the lane runs")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=150)
    assert process.returncode == 128 + signal.SIGTERM
    assert "cleared" in (tmp_path / "logs" / "long.log").read_text()


def test_lanes_that_could_never_start_are_refused() -> None:
    with pytest.raises(ValueError, match="lane b waits for c"):
        check([shell("a", "true"), shell("b", "true", after=("a", "c")), shell("c", "true")])
    with pytest.raises(ValueError, match="two lanes are called a"):
        check([shell("a", "true"), shell("a", "true")])


LOG = """\
kernel ...
build kubernetes (minutes, once) ... 227.3 s
image localhost/trenchcoat/busybox:1 ... 1.5 s
image localhost/trenchcoat/trainer:2 ... 253.4 s
============ slowest durations ============
660.00s setup    tests/cluster/test_linearize.py::test_a
  9.00s call     tests/cluster/test_linearize.py::test_b
700.10s call     tests/cluster/test_node_loss.py::test_c[x y]
======= 69 passed in 3000.00s =======
"""


def test_the_longest_steps_and_tests_are_told(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(LOG)
    assert details(tmp_path / "log") == [
        (227.3, "build kubernetes (minutes, once)"),
        (253.4, "image localhost/trenchcoat/trainer:2"),
        (700.1, "call tests/cluster/test_node_loss.py::test_c[x y]"),
        (660.0, "setup tests/cluster/test_linearize.py::test_a"),
    ]


def test_what_failed_is_told_in_a_line_each_the_first_one_first(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n@pytest.fixture\ndef broken():\n    raise OSError('no store')\n\n"
        "def test_a():\n    raise AssertionError('stalled: ' + 300 * 'x')\n\n"
        "def test_b(broken):\n    pass\n\ndef test_c():\n    print('FAILED to do')\n"
    )
    words = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py")
    made, _ = run(tmp_path, Lane("tests", (words,), env={"CI": "1"}))
    assert made.go() == 1
    first, second = failures(made.ran[0].log)
    assert first.startswith("FAILED test_it.py::test_a - AssertionError: stalled: xxx")
    assert first.endswith("x ...")
    assert second == "ERROR test_it.py::test_b - OSError: no store"


def test_the_table_has_every_lane_that_ran(tmp_path: Path) -> None:
    made, _ = run(tmp_path, shell("a", "echo 'build x ... 66.0 s'"), shell("b", "exit 1", after=("a",)))
    made.go()
    lines = [line.split() for line in table(made.ran, made.began)]
    assert [line[-1] for line in lines[1:]] == ["a", "x", "b", "all"]
    assert lines[2][0] == "1.1"


@pytest.fixture
def program() -> Iterator[ModuleType]:
    """hack/test."""
    loader = SourceFileLoader("hack_test", str(REPO / "hack" / "test"))
    spec = spec_from_loader("hack_test", loader)
    assert spec is not None
    module, path = module_from_spec(spec), list(sys.path)
    loader.exec_module(module)
    yield module
    sys.path[:] = path


def test_every_test_is_in_one_lane_which_must_pass_lint_too(program: ModuleType) -> None:
    lanes = {lane.name: lane for lane in program.lanes()}
    check(list(lanes.values()))
    words = {name: " ".join(lane.commands[-1]) for name, lane in lanes.items()}
    assert words["tests"].endswith(
        "tests --ignore tests/cluster --ignore tests/serving --ignore tests/versions --ignore tests/browser"
        " --ignore tests/release"
    )
    files = [f"tests/cluster/test_{name}.py" for name in ("linearize", "indexed", "rolling")]
    left_out = " ".join(f"--ignore={file}" for file in files)
    assert words["cluster tests"].endswith(f"pytest tests/cluster {left_out}")
    assert words["whole runs"].endswith(f"pytest {' '.join(files)}")
    assert words["lint"].endswith("lint")


def test_every_component_and_image_is_there_before_the_clusters(program: ModuleType) -> None:
    needed = {name for name in images.catalogue() if name in components.names()} | {"kubernetes", "etcd"}
    assert needed <= set(program.COMPONENTS) <= set(components.names())
    assert needed - {"kueue"} <= set(program.ON_CLUSTERS) < set(program.COMPONENTS)
    assert program.COMPONENTS[0] == "kubernetes", "the others share its packages"
    clusters = [lane for lane in program.lanes() if lane.name in program.CLUSTERS]
    assert len({lane.env["TRENCHCOAT_TEST_CLUSTER"] for lane in clusters}) == len(clusters) == 2
    after = {lane.name: set(lane.after) for lane in program.lanes()}
    assert all({"venv", "teacher"} <= set(lane.after) for lane in clusters)
    # Whole runs need no Kueue, and do not wait while it is built.
    assert "more images" in after["whole runs"] and "optional images" in after["cluster tests"]
    assert after["optional images"] == {"components", "more images"}


def test_the_ones_that_start_components_wait_until_they_are_built(tmp_path: Path) -> None:
    """They come last, and are not skipped meanwhile."""
    mark = tmp_path / "built"
    chosen = ["tests/charts/test_notes.py", "tests/hack/test_check_sizes.py"]
    environment = os.environ | {"TRENCHCOAT_COMPONENTS_BUILT": str(mark)}
    words = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *chosen]
    log = tmp_path / "log"
    with log.open("w") as sink, subprocess.Popen(words, cwd=REPO, env=environment, stdout=sink) as tests:
        try:
            until(lambda: "test_notes" in log.read_text(), 300, "those of the chart have their turn")
            time.sleep(1)
            said = log.read_text().splitlines()
            assert sum("test_check_sizes" in line and "PASSED" in line for line in said) > 5
            assert not any("test_notes" in line and ("PASSED" in line or "SKIPPED" in line) for line in said)
            mark.touch()
            tests.wait(500)
        finally:
            tests.kill()
    ended = [line for line in log.read_text().splitlines() if line.startswith("tests/charts/test_notes.py::")]
    assert ended and not [line for line in ended if "SKIPPED" in line]
