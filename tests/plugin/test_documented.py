"""What the documentation has people ask of kubectl: the real one, before a real API server, page by page."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.components import built_or_skip
from tests.control_plane import ControlPlane, control_plane
from tests.reports import samples

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP / "hack" / "site"))

import commands  # noqa: E402

ASKS = (
    "kubectl annotate trenchcoat",
    "kubectl apply -f",
    "kubectl config set-context",
    "kubectl create secret generic",
    "kubectl describe trenchcoat",
    "kubectl get trenchcoat",
    "kubectl patch configmap argocd-cm",
    "kubectl patch trenchcoat",
    "kubectl wait --for=condition=Succeeded",
)
MOST_SECONDS = 60.0
"""For one command, on the busiest machine; what never ends would else hold up all that follows."""
PAGES = {
    page.stem: shown
    for page in sorted((TOP / "docs").glob("*.md"))
    if (shown := [command for command in commands.commands(page.read_text()) if command.startswith(ASKS)])
}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane")) as made:
        made.define()
        made.namespace("argocd")
        made.core.create_namespaced_config_map("argocd", {"metadata": {"name": "argocd-cm"}})
        yield made


def complete(plane: ControlPlane, name: str, namespace: str) -> None:
    """Have a Trenchcoat's status say that it is, as the operator would."""
    generation = plane.read(name, namespace)["metadata"]["generation"]
    status = samples.large().trenchcoat.to_object()["status"]
    for condition in status["conditions"]:
        condition["observedGeneration"] = generation  # of an older one kubectl waits for news
    where = ("trenchcoat.dev", "v1alpha1", namespace, "trenchcoats", name)
    plane.trenchcoats.patch_namespaced_custom_object_status(*where, {"status": status})


def words_of(command: str, name: str) -> list[str]:
    """A command as a shell hands it on, with what stands for a name or a file of one's own."""
    words = [word for word in shlex.split(command, comments=True) if word != "--watch"]  # it never ends
    words = [
        name if word == "NAME" else word.replace("trenchcoat/NAME", f"trenchcoat/{name}") for word in words
    ]
    return ["examples/tiny.yaml" if word == "trenchcoat.yaml" else word for word in words]


@pytest.mark.parametrize("page", PAGES)
def test_kubectl_does_what_a_page_asks_of_it(page: str, plane: ControlPlane, tmp_path: Path) -> None:
    namespace, name = ("trenchcoat-demo", "tiny") if page == "tutorial" else (f"of-{page}", "mine")
    own = tmp_path / "kubeconfig"
    own.write_text(plane.kubeconfig.read_text().replace("pki/", f"{plane.kubeconfig.parent}/pki/"))
    folder = Path(built_or_skip("kubernetes", "kubectl")).parent
    variables = os.environ | {"KUBECONFIG": str(own), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}

    def ask(*words: str) -> str:
        done = subprocess.run(
            words, cwd=TOP, env=variables, capture_output=True, text=True, check=False, timeout=MOST_SECONDS
        )
        assert done.returncode == 0, (page, words, done.stderr)
        return done.stdout

    plane.namespace(namespace)
    ask("kubectl", "config", "set-context", "--current", "--namespace", namespace)
    body = samples.large(name=name).trenchcoat.to_object()
    plane.apply({**body, "metadata": {"name": name}}, namespace)
    complete(plane, name, namespace)
    for command in PAGES[page]:
        told = ask(*words_of(command, name))
        assert told, command
        if " apply " in command:
            complete(plane, told.split()[0].partition("/")[2], namespace)


def test_every_such_command_is_asked() -> None:
    shown = [command for commands_ in PAGES.values() for command in commands_]
    assert len(shown) > 15
    assert [begin for begin in ASKS if not any(command.startswith(begin) for command in shown)] == []
