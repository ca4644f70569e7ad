"""What ptxas makes of the attention's kernels for a Hopper GPU, on any machine."""

import json
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="needs Triton for its compiler")

LOW = re.compile(r"UIADD3 UR\d+, (UP\d), (UR\d+), \S+, URZ")
HIGH = re.compile(r"UIADD3\.X UR\d+, (UR\d+|URZ), \S+, URZ, (UP\d)")
NEAR = 12
"""Instructions from a sum's low word to its high word, at most."""


def wrong_sums(code):
    """Yield 64-bit sums whose high word begins with the low word's register.

    ptxas 12.8, which Triton 3.6.0 and 3.7.1 bring, makes that of some descriptors of wgmma that are computed
    before a loop and used after it. The product then reads shared memory beyond its end: an illegal access on
    an H200, or other numbers.
    """
    lines = code.splitlines()
    for index, line in enumerate(lines):
        low = LOW.search(line)
        for later in lines[index + 1 : index + NEAR] if low else ():
            high = HIGH.search(later)
            if high and high[2] == low[1]:
                if high[1] == low[2]:
                    yield f"{line.strip()} ... {later.strip()}"
                break
            if re.search(rf"\*/ *U\S* (UP\d, )*{low[2]},", later):  # another value from here on
                break


@pytest.mark.slow
@pytest.mark.parametrize("launches", ["prompts", "training"])
def test_descriptors_are_added_up_from_their_own_words(launches):
    words = [
        "-W",
        "ignore",
        "-m",
        "tests.trainer.helpers.compiled",
        "tests.trainer.students.launches",
        launches,
    ]
    run = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert sum("HGMMA" in code for code in found.values()) >= 4
    assert {name: sums for name, code in found.items() if (sums := list(wrong_sums(code)))} == {}


@pytest.mark.parametrize(
    ("between", "high", "is_wrong"),
    [
        ("UIADD3 UR9, UP1, UR5, 0x20, URZ", "UR5", True),
        ("UMOV UR7, URZ", "UR5", True),
        ("UMOV UR5, URZ", "UR5", False),
        ("UMOV UR7, URZ", "UR7", False),
        ("UMOV UR7, URZ", "URZ", False),
    ],
)
def test_a_wrong_sum_is_seen(between, high, is_wrong):
    code = f"""
        /*0010*/                   UIADD3 UR8, UP0, UR5, 0x20, URZ ;
        /*0020*/                   {between} ;
        /*0030*/                   UIADD3.X UR10, {high}, 0x40000040, URZ, UP0, !UPT ;
    """
    assert bool(list(wrong_sums(code))) == is_wrong
