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
        "preset": "shipped",
        "layersPerCria": 2,
    },
}


def changed(path: str | dict[str, Any], value: Any = None) -> dict[str, Any]:
    """The base object with one field set, such as "spec.data.tokens", or several; None removes one."""
    body = copy.deepcopy(BASE)
    for field, wanted in (path if isinstance(path, dict) else {path: value}).items():
        *parents, last = field.split(".")
        node = body
        for parent in parents:
            node = node.setdefault(parent, {})
        if wanted is None:
            del node[last]
        else:
            node[last] = wanted
    return body


def trenchcoat(path: str | dict[str, Any] | None = None, value: Any = None) -> Trenchcoat:
    """The base object, or one with a field changed, as a model."""
    return Trenchcoat.from_document(changed(path, value) if path else copy.deepcopy(BASE))
