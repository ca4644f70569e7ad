"""The API server refuses every bad spec of tests/api/golden/bad_specs.yaml, with a message that helps."""

import json
import re

from demo.environment import Environment
from kubernetes import client

from tests.api import bad_specs
from tests.cluster.objects import connect, delete

GROUP, VERSION, PLURAL = "trenchcoat.dev", "v1alpha1", "trenchcoats"


def in_order(message: str) -> str:
    """Several faults in the order of their fields: the API server goes through fields in any order."""
    if not message.startswith("["):
        return message
    return "[" + ", ".join(sorted(re.split(r", (?=spec\.)", message.strip("[]")))) + "]"


class ApiServer:
    """Sends Trenchcoats to the API server as `kubectl apply --dry-run=server` does."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self._objects = client.CustomObjectsApi(connect(environment))
        self._options = {"dry_run": "All", "field_validation": "Strict"}

    def told(self, case: bad_specs.Case) -> str | None:
        """What is said of a case; None if nothing is."""
        body = bad_specs.body(case)
        namespace = body["metadata"]["namespace"] = self.environment.namespace
        where = (GROUP, VERSION, namespace, PLURAL)
        try:
            if "from" not in case:
                self._objects.create_namespaced_custom_object(*where, body, **self._options)
            else:
                name = body["metadata"]["name"]
                self._objects.patch_namespaced_custom_object(*where, name, body, **self._options)
        except client.ApiException as refused:
            assert refused.status in (400, 422), refused
            message = json.loads(refused.body)["message"]
            return in_order(message.partition(" is invalid: ")[2] or message)
        return None


def test_every_bad_spec_is_refused_with_field_and_remedy(environment: Environment):
    server = ApiServer(environment)
    old = bad_specs.body({"from": {"spec.suspend": True}}, "from")
    old["metadata"]["namespace"] = environment.namespace
    name = old["metadata"]["name"]
    environment.kubectl("apply", "-f", "-", stdin=json.dumps(old))
    try:
        bad_specs.check("server", server.told)
    finally:
        delete(environment, name)
    assert all(case["server"] for case in bad_specs.cases())
