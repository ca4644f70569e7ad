"""What failures of a store mean, whoever meets them."""

from xml.etree.ElementTree import ParseError

import pytest
import urllib3
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from trenchcoat_s3.connection import Address, Credentials, Patience, again, connect
from trenchcoat_s3.faults import FAILURES, Fault, fault_of, root_cause
from trenchcoat_trainer.runtime.ports import free_port

KEY = Credentials("accessed-by", "kept-secret")


def said(code: str) -> S3Error:
    return S3Error(None, code, "said so", None, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("NoSuchKey", Fault.NO_OBJECT),
        ("NoSuchBucket", Fault.NO_BUCKET),
        ("AccessDenied", Fault.REFUSED),
        ("AuthorizationHeaderMalformed", Fault.REGION),
        ("RequestTimeTooSkewed", Fault.CLOCK),
        ("ExpiredToken", Fault.REFUSED),
        ("InvalidAccessKeyId", Fault.REFUSED),
        ("InvalidToken", Fault.REFUSED),
        ("SignatureDoesNotMatch", Fault.REFUSED),
        ("SlowDown", Fault.OTHER),
    ],
)
def test_answers_of_a_store(code: str, fault: Fault) -> None:
    assert fault_of(said(code)) is fault


def test_what_is_no_answer_of_a_store() -> None:
    assert fault_of(InvalidResponseError(200, "text/html", "<html>")) is Fault.NO_S3
    assert fault_of(InvalidResponseError(413, "text/html", "<html>")) is Fault.TOO_LARGE
    assert fault_of(InvalidResponseError(502, "text/html", "<html>")) is Fault.FAILING
    assert fault_of(ServerError("no", 503)) is Fault.FAILING
    assert (
        fault_of(ParseError("no XML")) is fault_of(ValueError("XML element <Name> not found")) is Fault.NO_S3
    )
    assert fault_of(urllib3.exceptions.ProtocolError("broken")) is Fault.UNREACHABLE
    assert fault_of(MinioException("something else")) is Fault.OTHER


def test_where_nobody_listens_the_cause_is_told_the_same_way_each_time() -> None:
    port = free_port()  # that stays so: the kernel gives it to nobody
    causes = set()
    for _ in range(2):
        address = Address(f"http://127.0.0.1:{port}", "us-east-1")
        client = connect(address, KEY.provider(), Patience(1, 1, again(0, 0), 1))
        with pytest.raises(FAILURES) as caught:
            client.bucket_exists("bucket")
        assert fault_of(caught.value) is Fault.UNREACHABLE
        causes.add(root_cause(caught.value))
    (cause,) = causes
    assert "Connection refused" in cause


def test_a_long_cause_is_cut() -> None:
    assert len(root_cause(ValueError("x" * 1000))) == 300


def test_a_secret_key_is_not_shown() -> None:
    assert "kept-secret" not in repr(KEY)
