"""Every bad spec is refused with a message that names the field and the remedy."""

import re

import pytest
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat

from tests.api import bad_specs

CASES = bad_specs.cases()


def told(case: bad_specs.Case) -> str | None:
    try:
        Trenchcoat.from_document(bad_specs.body(case))
    except InvalidTrenchcoatError as error:
        return str(error).partition(": ")[2]
    return None


def test_messages_are_those_of_the_file():
    bad_specs.check("local", told)


def test_there_are_many_and_each_is_another():
    assert len({case["case"] for case in CASES}) == len(CASES) >= 40
    assert len({str(bad_specs.body(case)) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_the_field_is_named_by_both(case):
    fields = list(case["set"])
    if "local" not in case:
        assert "from" in case, "only a change may be for the API server alone to refuse"
        assert case["server"]
        Trenchcoat.from_document(bad_specs.body(case))
        return
    for side in ("local", "server"):
        words = re.findall(r"[\w.]+", case[side])
        # A message stands at one field and may speak of another, as named below spec.
        named = [field for field in fields if any(word in (field, field[5:]) for word in words)]
        named += [field for field in fields if any(word.startswith(field + ".") for word in words)]
        # A field that is missing in an object, or holds the wrong one, may be told by the object.
        assert named or any(word and fields[0].startswith(word + ".") for word in words), case[side]


def test_only_changes_of_the_store_are_refused():
    assert all(field.startswith("spec.store.") for case in CASES if "from" in case for field in case["set"])
