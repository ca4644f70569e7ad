"""Specs for tests: a complete one, and changes to it by dotted path."""

import copy
from typing import Any

from trenchcoat_api.resource import Trenchcoat

BASE: dict[str, Any] = {
    "apiVersion": "trenchcoat.dev/v1alpha1",
    "kind": "Trenchcoat",
    "metadata": {"name": "tiny", "namespace": "team-a"},
    "spec": {
        "model": {"source": "s3://trenchcoat/teachers/tiny"},
        "data": {"source": "s3://trenchcoat/corpora/*.jsonl", "tokens": 1_000_000},
        "store": {
            "endpoint": "http://minio.minio.svc:9000",
            "bucket": "trenchcoat",
            "credentialsSecretRef": {"name": "minio"},
        },
        "layersPerCria": 2,
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The base object with one field set, such as "spec.data.tokens"; None removes it."""
    body = copy.deepcopy(BASE)
    *parents, last = path.split(".")
    node = body
    for parent in parents:
        node = node.setdefault(parent, {})
    if value is None:
        del node[last]
    else:
        node[last] = value
    return body


def trenchcoat(path: str | None = None, value: Any = None) -> Trenchcoat:
    """The base object, or one with a field changed, as a model."""
    return Trenchcoat.from_object(changed(path, value) if path else copy.deepcopy(BASE))
