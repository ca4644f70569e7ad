"""The previous release on the test cluster: its chart, its operator and its trainer."""

import sys
from dataclasses import replace
from pathlib import Path

from demo.environment import REPO, Environment
from demo.install import RELEASE, RELEASE_NAMESPACE, install_operator

sys.path.insert(0, str(REPO / "hack" / "cluster"))

from local_cluster import images, lifecycle

FOLDER = Path(__file__).parent / "data" / "previous"


def with_images(environment: Environment, cluster: str) -> Environment:
    """The same cluster with the previous release's images, which are built and handed to its nodes."""
    names = {name: images.build_over(name, FOLDER) for name in ("operator", "trainer")}
    for node in lifecycle.running(cluster).nodes:
        images.load_full_names(names.values(), node)
    return replace(environment, operator_image=names["operator"], trainer_image=names["trainer"])


def install(previous: Environment) -> None:
    """Install its chart in place of today's: neither that nor its definition is there any more."""
    (chart,) = FOLDER.glob("trenchcoat-*.tgz")
    remove_today(previous)
    install_operator(previous, chart=chart)


def remove_today(environment: Environment) -> None:
    """Take the release away, and every Trenchcoat with the definition."""
    environment.command("kubectl", "delete", "trenchcoats", "--all", "--all-namespaces", "--timeout=120s")
    environment.command("helm", "uninstall", RELEASE, "--namespace", RELEASE_NAMESPACE, "--wait")
    environment.kubectl("delete", "crd", "trenchcoats.trenchcoat.dev", "--timeout=120s")
