"""What hack/check-sizes says of a file at its bounds and beyond them."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "hack" / "check-sizes"


def check(top: Path, text: str, name: str = "api/package/module.py") -> str:
    """What it prints of one file; fails when its exit code says otherwise."""
    file = top / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    done = subprocess.run([sys.executable, TOOL, top], capture_output=True, text=True, check=False)
    assert done.returncode == (1 if done.stderr else 0)
    return done.stderr


@pytest.mark.parametrize(
    "function",
    [
        "def f(a, b, c, d, e, f): ...",
        "def f(a, b, c, *, d, e, f): ...",
        "def f(a, b, c, /, d, e, f, *rest, **named): ...",
        "class A:\n    def f(self, a, b, c, d, e, f): ...",
        "@triton.jit\ndef f(a, b, c, d, e, f, g): ...",
        "@triton.jit(do_not_specialize=['a'])\ndef f(a, b, c, d, e, f, g): ...",
        "class A:\n    @classmethod\n    async def f(cls, a, b, c, d, e, f): ...",
    ],
)
def test_six_parameters_fit_and_any_number_of_a_kernel(tmp_path: Path, function: str) -> None:
    assert check(tmp_path, function) == ""


@pytest.mark.parametrize(
    "function",
    [
        "def f(a, b, c, d, e, f, g): ...",
        "def f(a, b, c, *, d, e, f, g=1): ...",
        "class A:\n    async def f(self, a, b, c, d, e, f, g): ...",
        "@cache\ndef f(a, b, c, d, e, f, g): ...",
        "def outer():\n    def f(a, b, c, d, e, f, g): ...",
    ],
)
def test_seven_parameters_do_not(tmp_path: Path, function: str) -> None:
    assert "f() has 7 parameters, above 6" in check(tmp_path, function)


def test_400_lines_fit_and_one_more_does_not(tmp_path: Path) -> None:
    assert check(tmp_path / "fits", "pass\n" * 400, "trainer/package/module.py") == ""
    told = check(tmp_path / "not", "pass\n" * 401, "trainer/package/module.py")
    assert told.startswith("trainer/package/module.py:1: 401 lines, above 400")


def test_what_is_no_product_may_be_longer(tmp_path: Path) -> None:
    assert check(tmp_path, "pass\n" * 401, "tests/test_module.py") == ""
