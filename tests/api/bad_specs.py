"""Specs that must be refused, and what is said of each, in one file: tests/api/golden/bad_specs.yaml.

An entry has a `case`, the fields that it `set`s in the base object (tests/api/specs.py; null takes a field
away) and, for a change that is refused, what it is a change `from`. UPDATE_GOLDEN=1 writes what is said:
`local` by pydantic, in `trenchcoat plan` and `run` (tests/api/test_bad_specs.py), `server` by the API server
(tests/cluster/test_bad_specs.py).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.api.specs import changed

FILE = Path(__file__).parent / "golden" / "bad_specs.yaml"
HEADER = "# A new entry needs `case` and `set`; UPDATE_GOLDEN=1 adds the rest. See tests/api/bad_specs.py.\n"
Case = dict[str, Any]


def cases() -> list[Case]:
    """Every entry of the file."""
    loaded: list[Case] = yaml.safe_load(FILE.read_text())
    return loaded


def body(case: Case, base: str = "set") -> dict[str, Any]:
    """The object of a case, or with "from" the one that it changes."""
    return changed(case["from"]) if base == "from" else changed({**case.get("from", {}), **case["set"]})


def check(key: str, told: Callable[[Case], str | None]) -> None:
    """Compare what is told of every case with the file's `local` or `server`; update it where asked to."""
    listed = cases()
    found = {case["case"]: told(case) for case in listed}
    if os.environ.get("UPDATE_GOLDEN") == "1":
        for case in listed:
            case.pop(key, None)
            if found[case["case"]] is not None:
                case[key] = found[case["case"]]
        FILE.write_text(HEADER + yaml.safe_dump(listed, sort_keys=False, width=100, allow_unicode=True))
    assert found == {case["case"]: case.get(key) for case in listed}, (
        "if it is as it should be: UPDATE_GOLDEN=1"
    )
