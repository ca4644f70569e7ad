"""What the operator tells of a store that answers otherwise than usual, and that it gets by where it can."""

from collections.abc import Callable

import pytest
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_operator.storage.bucket import Bucket
from trenchcoat_operator.storage.deletions import Deletions
from trenchcoat_operator.storage.errors import StoreError
from trenchcoat_operator.storage.reader import StoreReader
from trenchcoat_s3.connection import Credentials

from tests.answering_server import Answer, Script, answering, error, listing
from tests.forwarding_proxy import forwarding
from tests.operator.simulation import trenchcoat

ARTIFACT = Artifacts(trenchcoat().spec).tokenize


def reader_at(endpoint: str) -> StoreReader:
    store = trenchcoat(store={"endpoint": endpoint}).spec.store
    return StoreReader(Bucket(store, Credentials("a", "b")))


READS: list[Callable[[StoreReader], object]] = [
    lambda reader: reader.manifest(ARTIFACT),
    lambda reader: reader.is_complete(ARTIFACT),
    lambda reader: reader.holds_any(ARTIFACT),
]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(400, "<Error><Code>Internal"), "does not answer as an S3 store"),
        (Answer(409, ""), "does not answer as an S3 store"),
        (Answer(413, "<html>", "text/html"), "or what stands before it fails|does not answer as"),
        (error(403, "RequestTimeTooSkewed"), "have clocks that differ .* by NTP"),
        (
            error(400, "AuthorizationHeaderMalformed"),
            r"spec\.store\.region: 'us-east-1' is not that of bucket",
        ),
        (error(403, "AccessDenied"), "refused the access key"),
    ],
)
def test_every_answer_is_told(read: Callable[[StoreReader], object], answer: Answer, message: str) -> None:
    with answering(lambda *_: answer) as (endpoint, _), pytest.raises(StoreError, match=message):
        read(reader_at(endpoint))


def keeping(names: list[str], many: Answer, one: Answer) -> Script:
    """A store with these objects, that answers so when told to delete many, or one."""

    def script(method: str, path: str) -> Answer:
        if method == "POST":
            return many
        if method == "DELETE":
            if one.status == 204:
                names.remove(path.partition("?")[0].removeprefix("/trenchcoat/"))
            return one
        return listing(*names) if "list-type" in path else Answer(headers={"ETag": '"0"'})

    return script


@pytest.mark.parametrize(
    "many", [error(403, "AccessDenied"), error(501, "NotImplemented"), Answer(405, "<html>", "text/html")]
)
def test_where_many_cannot_be_deleted_at_once_they_go_one_by_one(many: Answer) -> None:
    names = [f"{ARTIFACT.prefix}part-{number}" for number in range(3)]
    with answering(keeping(names, many, Answer(204))) as (endpoint, _):
        assert Deletions(reader_at(endpoint)).purge(ARTIFACT, None, seconds=60)
    assert names == []


def test_a_key_that_may_delete_nothing_is_told() -> None:
    names, denied = [f"{ARTIFACT.prefix}part-0"], error(403, "AccessDenied")
    message = r"part-0 cannot be deleted \(AccessDenied\)"
    with answering(keeping(names, denied, denied)) as (endpoint, _), pytest.raises(StoreError, match=message):
        Deletions(reader_at(endpoint)).purge(ARTIFACT, None, seconds=60)


def test_a_proxy_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with forwarding(refuse=True) as proxy, answering(lambda *_: Answer(404)) as (endpoint, asked):
        monkeypatch.setenv("HTTP_PROXY", f"http://me:secret-word@{proxy.address}")
        with pytest.raises(
            StoreError, match=rf"the proxy http://{proxy.address} .*Ask your network team"
        ) as told:
            reader_at(endpoint).manifest(ARTIFACT)
    assert asked == [] and "secret-word" not in told.value.message


def test_what_is_no_proxy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "socks5://proxy:1080")
    with pytest.raises(StoreError, match="HTTP_PROXY names no proxy that can be used"):
        reader_at("http://minio:9000")
