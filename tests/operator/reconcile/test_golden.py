"""What is decided about what is seen: every folder of data/ is a case, read as documentation.

Set UPDATE_GOLDEN=1 to write what is decided now, and read the difference.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from trenchcoat_operator.reconcile.decide import reconcile

from tests.operator import world

DATA = Path(__file__).parent / "data"
CASES = sorted(folder.name for folder in DATA.iterdir() if folder.is_dir())


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


@pytest.mark.parametrize("case", CASES)
def test_decision(case: str) -> None:
    seen = world.load(DATA / case)
    plan = reconcile(seen.trenchcoat, seen.observed, world.SETTINGS, seen.now)
    decided = seen.encode(yaml.dump(world.plan_document(plan), Dumper=_Dumper, sort_keys=False, width=110))
    file = DATA / case / "plan.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(decided)
    assert decided == file.read_text()
