"""Secrets are read now and then, and at once where something about them does not do."""

import base64
from typing import Any

import pytest
from trenchcoat_operator.kubernetes.errors import NotFoundError
from trenchcoat_operator.storage import access
from trenchcoat_operator.storage.access import Stores
from trenchcoat_operator.storage.cache import SECRET_SECONDS, SecretCache
from trenchcoat_operator.storage.errors import SecretError
from trenchcoat_s3.connection import Credentials

from tests.operator.simulation import trenchcoat


class Api:
    """An API server with one Secret."""

    def __init__(self) -> None:
        self.reads = 0
        self.data: dict[str, str] | None = {"accessKey": "old", "secretKey": "old"}

    def get(self, kind: Any, namespace: str, name: str) -> dict[str, Any]:
        self.reads += 1
        if self.data is None:
            raise NotFoundError(404, "NotFound", "no such Secret")
        return {"data": {key: base64.b64encode(text.encode()).decode() for key, text in self.data.items()}}


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(access, "SecretCache", lambda: SecretCache(clock=lambda: now[0]))
    return now


def test_read_once_in_a_while(clock) -> None:
    api = Api()
    stores = Stores(api, lambda *_: None)  # type: ignore[arg-type]
    first = stores.open(trenchcoat("tiny"))
    assert stores.open(trenchcoat("other")) is first
    assert api.reads == 1
    api.data = {"accessKey": "new", "secretKey": "new"}
    clock[0] += SECRET_SECONDS
    assert stores.open(trenchcoat()) is not first
    assert api.reads == 2


def test_read_at_once_after_a_fault(clock) -> None:
    api = Api()
    stores = Stores(api, lambda *_: None)  # type: ignore[arg-type]
    first = stores.open(trenchcoat())
    api.data = {"accessKey": "new", "secretKey": "new"}
    stores.forget_secrets("elsewhere")
    assert stores.open(trenchcoat()) is first
    stores.forget_secrets(trenchcoat().metadata.namespace)
    assert stores.open(trenchcoat()) is not first


def test_the_token_of_the_exports_destination_is_looked_for(clock) -> None:
    api = Api()
    stores = Stores(api, lambda *_: None)  # type: ignore[arg-type]
    export = {"destination": "hf://me/student", "tokenSecretRef": {"name": "hf", "key": "token"}}
    with pytest.raises(SecretError, match=r"spec\.export\.tokenSecretRef: Secret 'hf' has no key 'token'"):
        stores.check_secrets(trenchcoat(export=export))
    assert api.data is not None
    api.data["token"] = "hf_may_write"
    stores.forget_secrets(trenchcoat().metadata.namespace)
    stores.check_secrets(trenchcoat(export=export))


def test_one_that_is_missing_is_looked_for_every_time(clock) -> None:
    api = Api()
    api.data = None
    stores = Stores(api, lambda *_: None)  # type: ignore[arg-type]
    for reads in (1, 2):
        with pytest.raises(SecretError, match="has no Secret"):
            stores.open(trenchcoat())
        assert api.reads == reads


def test_nothing_is_kept_longer_than_it_is_used() -> None:
    now = 100.0
    secrets = SecretCache(clock=lambda: now)
    secrets.put("ml", "first", {"accessKey": "a"})
    now += SECRET_SECONDS - 1
    secrets.put("ml", "second", {"accessKey": "b"})
    assert secrets.get("ml", "first") == {"accessKey": "a"}
    now += 1
    assert secrets.get("ml", "first") is None
    assert list(secrets._secrets) == [("ml", "second")]


@pytest.mark.parametrize("around", ["{}\n", "\t{} ", "{}\r\n"])
def test_line_breaks_and_blanks_around_a_key_are_not_meant(clock, around: str) -> None:
    api = Api()
    stores = Stores(api, lambda *_: None)  # type: ignore[arg-type]
    plain = stores.open(trenchcoat())
    clock[0] += SECRET_SECONDS
    api.data = {"accessKey": around.format("old"), "secretKey": around.format("old")}
    assert stores.open(trenchcoat()) is plain


@pytest.mark.parametrize("key", ["", " \n", "first\nsecond", "first second", "zürich"])
def test_a_key_that_no_header_can_hold_is_told_without_it(clock, key: str) -> None:
    api = Api()
    api.data = {"accessKey": key, "secretKey": "old"}
    with pytest.raises(SecretError, match=r"'accessKey' of Secret|no key 'accessKey'") as caught:
        Stores(api, lambda *_: None).open(trenchcoat())  # type: ignore[arg-type]
    assert "first" not in str(caught.value)


def opened(api: Api, **reference: Any) -> Any:
    """The access key that a store is opened with."""
    owner = trenchcoat(store={"credentialsSecretRef": {"name": "minio", **reference}})
    named = owner.spec.store.credentials_secret_ref
    assert named is not None
    return Stores(api, lambda *_: None)._credentials(owner, named)  # type: ignore[arg-type]


def test_keys_of_a_secret_that_another_program_made() -> None:
    """Such as Rook's for an ObjectBucketClaim."""
    api = Api()
    api.data = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
    keys = {"accessKey": "AWS_ACCESS_KEY_ID", "secretKey": "AWS_SECRET_ACCESS_KEY"}
    assert opened(api, keys=keys) == Credentials("id", "key")
    with pytest.raises(
        SecretError, match=r"no key 'accessKey'.*it has AWS_ACCESS_KEY_ID, .* name another by keys"
    ):
        opened(api)


def test_a_session_token_is_taken_where_the_secret_has_one() -> None:
    api = Api()
    assert opened(api).session_token is None
    api.data = {"accessKey": "id", "secretKey": "key", "sessionToken": "token\n"}
    assert opened(api) == Credentials("id", "key", "token")
    api.data["sessionToken"] = "two words"
    with pytest.raises(SecretError, match="'sessionToken' of Secret"):
        opened(api)


@pytest.mark.parametrize(
    ("tracker", "reference", "lacks"),
    [
        (
            "mlflow",
            {"tokenSecretRef": {"name": "mlflow", "key": "token"}},
            "tokenSecretRef: Secret 'mlflow' has no key 'token'",
        ),
        (
            "mlflow",
            {"basicAuthSecretRef": {"name": "mlflow"}},
            "basicAuthSecretRef: Secret 'mlflow' has no key 'username'",
        ),
        (
            "trackio",
            {"tokenSecretRef": {"name": "trackio", "key": "write"}},
            "tokenSecretRef: Secret 'trackio' has no key 'write'",
        ),
    ],
)
def test_what_trackers_need_is_missed_before_a_pod_waits_for_it(
    tracker: str, reference: dict[str, Any], lacks: str
) -> None:
    stores = Stores(Api(), lambda *_: None)  # type: ignore[arg-type]
    with pytest.raises(SecretError, match=f"spec.tracking.{tracker}.{lacks}"):
        stores.check_secrets(trenchcoat(tracking={tracker: {"uri": "https://tracker.example", **reference}}))
