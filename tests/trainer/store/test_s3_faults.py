"""What an S3 store answers when something is wrong with it or before it, and what is told."""

import re
import time
from datetime import timedelta

import minio
import pytest
from trenchcoat_s3.connection import Address, Credentials
from trenchcoat_trainer.errors import BadInputError, NotFoundError, StoreError
from trenchcoat_trainer.store import S3Store
from trenchcoat_trainer.store.parts import Part, Span

from tests.answering_server import Answer, Script, answering, error, listing


def store_at(endpoint: str) -> S3Store:
    return S3Store(Address(endpoint, "us-east-1"), "trenchcoat", Credentials("a", "b").provider())


HTML = "<html><body>{}</body></html>"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(500, "<Error><Code>Internal"), "does not answer as an S3 store does"),
        (Answer(400, "no XML at all &"), "does not answer as an S3 store does"),
        (Answer(409, ""), "does not answer as an S3 store does|failed for"),
        (
            Answer(413, HTML.format("too large"), "text/html"),
            "refused x as too large .HTTP 413.: raise its limit",
        ),
        (Answer(502, HTML.format("bad gateway"), "text/html"), "failed for x .*502.*: see its log"),
        (
            Answer(404, HTML.format("not here"), "text/html"),
            "does not answer as an S3 store .* correct the address",
        ),
        (error(503, "SlowDown"), "failed for x: SlowDown"),
        (error(403, "RequestTimeTooSkewed"), "clocks of this machine and of the store .* by NTP"),
        (
            error(400, "AuthorizationHeaderMalformed"),
            r"spec\.store\.region 'us-east-1' is not that of bucket",
        ),
    ],
)
@pytest.mark.parametrize("method", ["read", "write", "size"])
def test_every_answer_is_told(
    monkeypatch: pytest.MonkeyPatch, method: str, answer: Answer, message: str
) -> None:
    if method == "size" and answer.status in (404, 413):
        pytest.skip("HEAD has no body that would say so")
    with answering(lambda *_: answer) as (endpoint, _), pytest.raises(StoreError) as caught:
        store = store_at(endpoint)
        store.write("x", b"x") if method == "write" else getattr(store, method)("x")
    if method == "size" and answer.status >= 409:
        message += "|failed for x"
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "refused the credentials" not in str(caught.value)


@pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "AuthorizationHeaderMalformed"])
def test_head_is_asked_again_by_get_which_says_why(code: str) -> None:
    status = 403 if code == "RequestTimeTooSkewed" else 400
    with answering(lambda *_: error(status, code)) as (endpoint, asked):
        with pytest.raises(StoreError, match=r"clocks of|spec\.store\.region") as caught:
            store_at(endpoint).exists("x")
        with pytest.raises(StoreError, match=r"clocks of|spec\.store\.region"):
            store_at(endpoint).check("prefix/")
    assert "refused the credentials" not in str(caught.value)
    assert [method for method, _ in asked] == ["HEAD", "GET", "GET"]


def test_a_key_that_is_refused_stays_refused() -> None:
    denied = error(403, "AccessDenied")
    with answering(lambda *_: denied) as (endpoint, _), pytest.raises(StoreError, match="refused the cred"):
        store_at(endpoint).exists("x")


def test_the_bucket_itself_need_not_be_shown() -> None:
    """Rights on what lies below a prefix are enough."""

    def script(method: str, path: str) -> Answer:
        allowed = method == "GET" and "prefix=trenchcoat%2F" in path
        return listing() if allowed else error(403, "AccessDenied")

    with answering(script) as (endpoint, _):
        store_at(endpoint).check("trenchcoat/")
        with pytest.raises(StoreError, match="refused the credentials"):
            store_at(endpoint).check("elsewhere/")


def upload(failing: int) -> Script:
    """A multipart upload whose completion is refused so many times with 503."""
    left = [failing]

    def script(method: str, path: str) -> Answer:
        if method == "POST" and "uploads" in path:
            return Answer(body="<R><Bucket>b</Bucket><Key>x</Key><UploadId>1</UploadId></R>")
        if method == "POST":
            left[0] -= 1
            if left[0] >= 0:
                return error(503, "SlowDown")
            return Answer(body="<R><Bucket>b</Bucket><Key>x</Key><ETag>e-2</ETag></R>")
        return Answer(headers={"ETag": '"0"'})

    return script


def test_one_refusal_at_the_end_does_not_end_an_upload() -> None:
    with answering(upload(1)) as (endpoint, asked):
        store_at(endpoint).write_stream("x", [bytes(1 << 20)] * 20, 20 << 20)
    assert [method for method, path in asked if "uploadId" in path and method == "POST"] == ["POST"] * 2


def test_the_last_refusal_is_told_by_its_code() -> None:
    with answering(upload(9)) as (endpoint, _), pytest.raises(StoreError, match="failed for x: SlowDown"):
        store_at(endpoint).write_stream("x", [bytes(1 << 20)] * 20, 20 << 20)


@pytest.mark.parametrize("code", ["InvalidPart", "EntityTooSmall", "NotImplemented"])
def test_a_store_that_copies_no_such_parts_is_no_failure(code: str) -> None:
    """Cloudflare's R2 wants all parts but the last of one size."""

    def script(method: str, path: str) -> Answer:
        if method == "POST" and "uploads" in path:
            return Answer(body="<R><Bucket>b</Bucket><Key>x</Key><UploadId>1</UploadId></R>")
        if method == "PUT":
            return Answer(body="<R><ETag>e</ETag><LastModified>2026-01-01T00:00:00Z</LastModified></R>")
        if method == "POST":
            return error(400 if code != "NotImplemented" else 501, code)
        return Answer()

    size = 6 << 20
    with answering(script) as (endpoint, _):
        store = store_at(endpoint)
        parts = [
            Part((Span("teacher", 0, size),), is_copied=True),
            Part((Span("teacher", size, size + 1),), True),
        ]
        store._client.stat_object = lambda *_, **__: Stat(3 * size)  # type: ignore[method-assign]
        assert store.compose("x", parts, store, "scratch/") is None


class Stat:
    """What the client knows of an object that is there."""

    def __init__(self, size: int) -> None:
        self.size, self.etag = size, "0"


def test_a_bucket_that_cannot_be_is_bad_input() -> None:
    with pytest.raises(BadInputError, match="s3://My_Bucket cannot be"):
        store_at("http://127.0.0.1:9").in_bucket("My_Bucket")


def test_there_is_nothing_past_the_end(minio_server) -> None:
    """As in a folder; a real MinIO answers InvalidRange."""
    store = minio_server.store()
    store.write("ends/ten", b"0123456789")
    store.write("ends/empty", b"")
    assert store.read("ends/ten", 8, 10) == b"89"
    assert store.read("ends/ten", 10) == store.read("ends/ten", 10, 5) == store.read("ends/ten", 99, 1) == b""
    assert store.read("ends/empty") == store.read("ends/empty", 0, 5) == store.read("ends/empty", 3) == b""
    with pytest.raises(NotFoundError):
        store.read("ends/none", 10, 5)


def test_a_clock_that_is_off_is_told_by_a_real_store(minio_server, monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = minio_server.store(), minio.time.utcnow
    monkeypatch.setattr(minio.time, "utcnow", lambda: now() + timedelta(minutes=20))
    for ask in (lambda: store.exists("x"), lambda: store.check("x/"), lambda: store.write("x", b"")):
        with pytest.raises(StoreError, match="clocks of this machine and of the store"):
            ask()


def test_a_store_that_asks_for_a_long_pause_is_not_waited_for() -> None:
    busy = Answer(503, "<Error><Code>SlowDown</Code></Error>", headers={"Retry-After": "120"})
    with answering(lambda *_: busy) as (endpoint, asked):
        began = time.monotonic()
        with pytest.raises(StoreError, match="SlowDown"):
            store_at(endpoint).write("x", b"x")
    assert len(asked) == 3
    assert time.monotonic() - began < 110  # and not the 120 that it asks for


def test_a_listing_is_in_order_whatever_the_stores_is() -> None:
    """Storj and S3 Express list in an order of their own."""
    with answering(lambda *_: listing("text/b", "text/c", "text/a", "text/B")) as (endpoint, _):
        assert [entry.path for entry in store_at(endpoint).list("text/")] == [
            "text/B",
            "text/a",
            "text/b",
            "text/c",
        ]
