"""Which events of a Trenchcoat are worth a look."""

from typing import Any

from trenchcoat_operator.handlers import Changes
from trenchcoat_operator.model.key import Key

KEY = Key("ml", "tiny")


def metadata(version: int, **more: Any) -> dict[str, Any]:
    return {"name": "tiny", "namespace": "ml", "generation": 1, "resourceVersion": str(version), **more}


def test_a_status_that_the_operator_wrote_is_no_news() -> None:
    changes = Changes()
    assert changes.is_news(KEY, metadata(1), deleted=False)
    assert not changes.is_news(KEY, metadata(2, managedFields=[{"manager": "x"}]), deleted=False)
    assert not changes.is_news(KEY, metadata(3), deleted=False)


def test_everything_else_is() -> None:
    changes = Changes()
    changes.is_news(KEY, metadata(1), deleted=False)
    for number, change in enumerate(
        (
            {"generation": 2},
            {"generation": 2, "labels": {"team": "a"}},
            {"generation": 2, "finalizers": ["trenchcoat.dev/artifacts"]},
            {"generation": 2, "deletionTimestamp": "2026-01-01T00:00:00Z"},
        )
    ):
        assert changes.is_news(KEY, metadata(number + 2, **change), deleted=False), change
        assert not changes.is_news(KEY, metadata(number + 2, **change), deleted=False)
    assert changes.is_news(KEY, metadata(9), deleted=True)
    assert changes.is_news(KEY, metadata(9), deleted=False), "one of the same name, made anew"


def test_each_trenchcoat_is_its_own() -> None:
    changes = Changes()
    assert changes.is_news(KEY, metadata(1), deleted=False)
    assert changes.is_news(Key("ml", "other"), metadata(1, name="other"), deleted=False)
