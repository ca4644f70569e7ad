"""What is in the images, seen from within a pod."""

import json

import pytest
from demo.environment import Environment

from tests.cluster.objects import apply
from tests.cluster.security import restricted_pod

UNCOMPILED = """
import importlib, json, pathlib, sys

importlib.import_module({module!r})
# Some pretend to have any attribute.
caches = [getattr(module, "__cached__", None) for module in list(sys.modules.values())]
caches = [path for path in caches if isinstance(path, str)]
assert len(caches) > 200, len(caches)
print(json.dumps([path for path in caches if not pathlib.Path(path).exists()]))
"""


AS_OPENSHIFT_DOES = {"runAsUser": 1000700000, "runAsGroup": 0, "fsGroup": 1000700000}
NAMED = {
    "trainer": """
import trenchcoat_trainer.stages.stitch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
print(default_cache_dir())
""",
    "operator": """
import trenchcoat_operator.handlers
from kopf._core.engines.peering import detect_own_id
print(detect_own_id(manual=True))
""",
}


@pytest.mark.parametrize("image", list(NAMED))
def test_programs_start_as_a_user_whom_the_image_does_not_know(environment: Environment, image: str) -> None:
    """OpenShift gives each namespace user ids of its own, and libraries ask for the user's name."""
    name = f"anybody-{image}"
    spec = restricted_pod(getattr(environment, f"{image}_image"), "python", "-c", NAMED[image])
    spec["securityContext"] |= AS_OPENSHIFT_DOES
    (container,) = spec["containers"]
    container["env"] = [{"name": "HOME", "value": "/tmp"}, {"name": "USER", "value": "trenchcoat"}]
    container["securityContext"]["readOnlyRootFilesystem"] = True
    container["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]
    spec["volumes"] = [{"name": "tmp", "emptyDir": {}}]
    apply(environment, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    try:
        ended = "--for=jsonpath={.status.containerStatuses[0].state.terminated}"
        environment.kubectl("wait", ended, f"pod/{name}", "--timeout=300s")
        said = environment.kubectl("logs", name)
        assert "Traceback" not in said, said
        assert "trenchcoat" in said.splitlines()[-1]
    finally:
        environment.kubectl("delete", "pod", name, "--wait=false")


@pytest.mark.parametrize(
    ("image", "module"),
    [("trainer", "trenchcoat_trainer.stages.stitch"), ("operator", "trenchcoat_operator.handlers")],
)
def test_nothing_is_compiled_when_a_program_starts(environment: Environment, image: str, module: str) -> None:
    """Python cannot keep bytecode in a container: without it, torch costs seconds at every start."""
    name = f"bytecode-{image}"
    full_name = getattr(environment, f"{image}_image")
    spec = restricted_pod(full_name, "python", "-c", UNCOMPILED.format(module=module))
    apply(environment, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    try:
        ended = "--for=jsonpath={.status.containerStatuses[0].state.terminated}"
        environment.kubectl("wait", ended, f"pod/{name}", "--timeout=300s")
        said = environment.kubectl("logs", name)
        assert said.startswith("["), said
        assert json.loads(said) == []
    finally:
        environment.kubectl("delete", "pod", name, "--wait=false")
