"""Whether what is followed of a Trenchcoat has come as far as what was written or heard of."""

import pytest
from trenchcoat_operator.kubernetes.versions import Versions
from trenchcoat_operator.model.key import Key

KEY, OTHER = Key("ml", "tiny"), Key("ml", "other")


def test_what_nobody_told_of_is_current() -> None:
    assert Versions().is_current(KEY, "7")


def test_only_what_is_as_new_as_the_newest_that_was_told_of_is_current() -> None:
    versions = Versions()
    for told in ("9", "10", "8"):  # events may come after what was written meanwhile
        versions.note(KEY, told)
    assert [versions.is_current(KEY, version) for version in ("8", "9", "10", "11")] == [
        False, False, True, True,
    ]  # fmt: skip
    assert versions.is_current(OTHER, "1")


@pytest.mark.parametrize("version", ["", "12a", "-1", "\u0662"])
def test_what_is_no_number_is_never_current(version: str) -> None:
    versions = Versions()
    versions.note(KEY, version)
    assert not versions.is_current(KEY, version)
    assert versions.is_current(KEY, "1"), "and stands in nobody's way"


def test_those_that_are_gone_are_forgotten() -> None:
    versions = Versions()
    versions.note(KEY, "9")
    versions.note(OTHER, "9")
    versions.retain([OTHER])
    assert versions.is_current(KEY, "1")
    assert not versions.is_current(OTHER, "1")
