"""What is told of a request."""

import pytest
from trenchcoat_operator.kubernetes.transport import request_labels


@pytest.mark.parametrize(
    ("request_line", "labels"),
    [
        (("GET", "/api/v1/nodes"), ("list", "nodes")),
        (("GET", "/api/v1/namespaces/a/pods"), ("list", "pods")),
        (("GET", "/api/v1/namespaces/a/secrets/s"), ("get", "secrets")),
        (("PATCH", "/apis/batch/v1/namespaces/a/jobs/j", "application/apply-patch+yaml"), ("apply", "jobs")),
        (("PATCH", "/api/v1/namespaces/a/pods/p/status"), ("patch", "pods/status")),
        (("DELETE", "/apis/kubeflow.org/v1/namespaces/a/pytorchjobs/p"), ("delete", "pytorchjobs")),
        (("POST", "/api/v1/namespaces/a/events"), ("create", "events")),
        (("GET", "/api/v1/namespaces/a"), ("get", "namespaces")),
        (("GET", "/apis"), ("discover", "apis")),
        (("GET", "/apis/batch/v1"), ("discover", "apis")),
    ],
)
def test_requests_are_told_by_verb_and_resource(request_line, labels):
    method, path, *content_type = request_line
    assert request_labels(method, path, *(content_type or ["application/json"])) == labels
