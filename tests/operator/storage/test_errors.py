"""What is told of a store that says no: the field at fault."""

import pytest
from minio.error import S3Error
from trenchcoat_operator.storage.errors import explained

from tests.operator.simulation import trenchcoat


@pytest.mark.parametrize(
    ("code", "reason", "field"),
    [
        ("NoSuchBucket", "BucketNotFound", "spec.store.bucket"),
        ("AccessDenied", "StoreAccessDenied", "spec.store.credentialsSecretRef"),
        ("InvalidAccessKeyId", "StoreAccessDenied", "spec.store.credentialsSecretRef"),
        ("SignatureDoesNotMatch", "StoreAccessDenied", "spec.store.credentialsSecretRef"),
        ("SlowDown", "StoreUnreachable", "spec.store.endpoint"),
    ],
)
def test_answers_of_a_store(code: str, reason: str, field: str) -> None:
    refusal = S3Error(None, code, "said so", None, None, None)  # type: ignore[arg-type]
    error = explained(trenchcoat().spec.store, refusal)
    assert error.reason == reason
    assert error.message.startswith(field + ": ")
