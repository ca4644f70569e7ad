"""Bring a cluster up, take it down, take a node away and give it back."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import components, config, debian, images, namespaces, pki
from .layout import HACK, Layout, Node, cache, free_slot, state_root
from .shell import Failure, locked, run, step, succeeds, wait_for

PACKAGES = {  # What each Debian package is needed for, as a program to look for.
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": f"{config.CNI_PLUGINS}/ptp",
    "buildah": "buildah",
    "iproute2": "ip",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ipset": "ipset",
    "debootstrap": "debootstrap",
    "busybox-static": "busybox",
    "openssl": "openssl",
}
NODE_IMAGES = ("busybox", "coredns")


def up(layout: Layout, gpus: Sequence[int]) -> Layout:
    """Start a cluster from nothing, whatever an earlier run left; return it with its slot."""
    if os.geteuid() != 0:
        raise Failure("a cluster needs root: it makes namespaces, links and cgroups")
    install_packages()
    components.build(["kubernetes", "etcd"])
    images.build(NODE_IMAGES)
    down(layout)
    layout.logs.mkdir(parents=True)
    # Two starts must not choose one slot.
    with step("namespaces and network"), locked(state_root() / ".lock"):
        layout = replace(layout, slot=_choose_slot())
        _remember(layout, gpus)
        outer = _start_outer(layout)
    with step("certificates"):
        pki.make(layout)
        _write_configuration(layout)
    with step("etcd, API server, controllers"):
        _start_control_plane(layout, outer)
    with step(f"{layout.node_count} nodes", 10):
        for node in layout.nodes:
            _start_node_processes(node, outer, fresh=True)
        for node in layout.nodes:
            _wait_ready(node, since="")
        claim_gpus(layout, gpus)
    with step("DNS"):
        manifest = (HACK / "coredns.yaml").read_text()
        manifest = manifest.replace("IMAGE", images.tag("coredns")).replace("ADDRESS", layout.network.dns)
        kubectl(layout, "apply", "-f", "-", stdin=manifest)
        kubectl(layout, "rollout", "status", "-n", "kube-system", "daemonset/coredns", "--timeout=300s")
    return layout


def down(layout: Layout) -> None:
    """Remove a cluster and every trace of it but the cache; also what a killed run left."""
    if leftovers(layout):
        with step(f"stop cluster {layout.name}"):
            namespaces.kill_clients(layout.kubeconfig)
            namespaces.kill(layout.marker)
            # Nodes are nested, and so gone by now; unless one was started by hand.
            for node in layout.nodes:
                namespaces.kill(node.marker)
            if namespaces.link_exists(layout.link):
                # The kernel is about to, once the last connection within has timed out.
                succeeds(["ip", "link", "delete", layout.link])
            namespaces.remove_cgroups(layout.cgroup)
            shutil.rmtree(layout.state, ignore_errors=True)
        if left := leftovers(layout):
            raise Failure("could not remove: " + ", ".join(left))


def leftovers(layout: Layout) -> list[str]:
    """Everything of a cluster that is there now: processes, link, cgroups, mounts, state."""
    found = [f"process {pid}" for pid in namespaces.outside(layout.marker)]
    found += [f"process {pid}" for node in layout.nodes for pid in namespaces.outside(node.marker)]
    found += [f"process {pid}" for pid in namespaces.clients(layout.kubeconfig)]
    if layout.state.exists():
        found.append(f"folder {layout.state}")
    if namespaces.link_exists(layout.link):
        found.append(f"link {layout.link}")
    found += [f"cgroup {folder}" for folder in namespaces.cgroup_folders(layout.cgroup)]
    with open("/proc/self/mounts") as mounts:
        found += [f"mount {line.split()[1]}" for line in mounts if f"{layout.state}/" in line]
    return found


def load(name: str) -> Layout | None:
    """The cluster of that name as `up` left it, or None."""
    state = state_root() / name
    if not (state / "cluster.json").exists():
        return None
    known = _remembered(state)
    return Layout(name, known["slot"], len(known["gpus"]))


def running(name: str) -> Layout:
    """The cluster of that name, which must run."""
    layout = load(name) or Layout(name)
    _outer(layout)
    return layout


def _outer(layout: Layout) -> int:
    pid = namespaces.inside(layout.marker)
    if pid is None:
        raise Failure(
            f"{layout.name} does not run: start it with `hack/cluster/cluster --name {layout.name} up`"
        )
    return pid


def kill_node(node: Node) -> None:
    """Take a node away as a power cut would."""
    with step(f"kill {node.name}"):
        namespaces.kill(node.marker)
        namespaces.remove_cgroups(node.cgroup)


def start_node(node: Node) -> None:
    """Start a node that was killed; it finds its images, and what pods it had, on its disk."""
    if namespaces.outside(node.marker):
        raise Failure(f"{node.name} runs already")
    outer = _outer(node.cluster)
    _, heartbeat = _readiness(node)  # It may still count as ready.
    with step(f"start {node.name}"):
        _start_node_processes(node, outer, fresh=False)
        _wait_ready(node, since=heartbeat)
        claim_gpus(node.cluster, _remembered(node.cluster.state)["gpus"])


def load_images(layout: Layout, names: Sequence[str]) -> None:
    """Build images and import them into every node that runs."""
    images.build(names)
    for node in layout.nodes:
        if namespaces.outside(node.marker):
            with step(f"import {' '.join(names)} into {node.name}"):
                images.load(names, node)


def kubectl(layout: Layout, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
    """Run the cluster's own kubectl as its administrator."""
    program = components.binary("kubernetes", "kubectl")
    return run([program, f"--kubeconfig={layout.kubeconfig}", *arguments], stdin=stdin, check=check)


def install_packages() -> None:
    """Install the Debian packages whose programs are missing."""
    if missing := [package for package, program in PACKAGES.items() if not shutil.which(program)]:
        with step(f"install {' '.join(missing)}"):
            debian.install(missing, cache() / "logs" / "apt.log")


def _choose_slot() -> int:
    routes = [line.split()[0] for line in run(["ip", "-4", "route", "show"]).splitlines()]
    return free_slot(route for route in routes if route[0].isdigit())


def _remember(layout: Layout, gpus: Sequence[int]) -> None:
    (layout.state / "cluster.json").write_text(json.dumps({"slot": layout.slot, "gpus": list(gpus)}))


def _remembered(state: Path) -> dict[str, Any]:
    known: dict[str, Any] = json.loads((state / "cluster.json").read_text())
    return known


def _start_outer(layout: Layout) -> int:
    """The namespaces that hold everything, with a bridge for the nodes, and the host on that bridge too."""
    log = layout.logs / "namespaces.log"
    outer = namespaces.create(layout.marker, "cluster", layout.state / "ready", log)
    network = layout.network
    run(["ip", "link", "add", layout.link, "type", "veth", "peer", "name", "host", "netns", str(outer)])
    _ip(outer, "link add nodes type bridge")
    _ip(outer, f"addr add {network.api}/24 dev nodes")
    _ip(outer, "link set host master nodes up")
    _ip(outer, "link set nodes up")
    for node in layout.nodes:
        _ip(outer, f"route add {network.pods(node.number)} via {node.address}")
    # Host to service addresses: a node's kube-proxy knows them; the first node is the one that stays.
    _ip(outer, f"route add {network.services} via {layout.nodes[0].address}")
    run(["ip", "addr", "add", f"{network.host}/24", "dev", layout.link])
    run(["ip", "link", "set", layout.link, "up"])
    run(["ip", "route", "add", network.everything, "via", network.api])
    return outer


def _ip(pid: int, arguments: str) -> None:
    run(["nsenter", "-t", str(pid), "-n", "ip", *arguments.split()])


def _write_configuration(layout: Layout) -> None:
    files = {layout.state / f"{name}.kubeconfig": name for name in ("controller-manager", "scheduler")}
    for path, identity in {**files, layout.kubeconfig: "admin"}.items():
        path.write_text(config.kubeconfig(layout, identity))
    for node in layout.nodes:
        for path, text in config.node_files(node, images.tag("busybox")).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def _path() -> str:
    return f"{components.folder_of('kubernetes')}:/usr/sbin:/usr/bin:/sbin:/bin"


def _start_control_plane(layout: Layout, outer: int) -> None:
    # Debian's etcd is too old for this API server: it would refuse clients that begin with a watch.
    etcd = config.etcd(str(components.binary("etcd", "server")))
    namespaces.serve(outer, etcd, layout.logs / "etcd.log", _path())
    api_server = config.api_server(layout)
    namespaces.serve(outer, api_server, layout.logs / "kube-apiserver.log", _path())

    def ready() -> bool:
        return kubectl(layout, "get", "--raw=/readyz", check=False) == "ok"

    wait_for("API server", ready, seconds=300, log=layout.logs / "kube-apiserver.log")
    for command in (config.controller_manager(layout), config.scheduler(layout)):
        namespaces.serve(outer, command, layout.logs / f"{command[0]}.log", _path())


def _start_node_processes(node: Node, outer: int, *, fresh: bool) -> None:
    """Containerd, kubelet and kube-proxy, in namespaces nested in the cluster's."""
    layout, logs = node.cluster, node.cluster.logs / node.name
    namespaces.make_cgroup(node.cgroup)
    inner = namespaces.create(node.marker, "node", node.state / "ready", logs / "namespaces.log", outer)
    _ip(outer, f"link add {node.name} type veth peer name eth0 netns {inner}")
    _ip(outer, f"link set {node.name} master nodes up")
    _ip(inner, f"addr add {node.address}/24 dev eth0")
    _ip(inner, "link set eth0 up")
    _ip(inner, f"route add default via {layout.network.api}")
    for other in layout.nodes:
        if other != node:
            _ip(inner, f"route add {layout.network.pods(other.number)} via {other.address}")
    _start_containerd(node, inner, fresh=fresh)
    namespaces.serve(inner, config.kubelet_command(node), logs / "kubelet.log", _path())
    proxy = ["kube-proxy", f"--config={node.state}/proxy.json"]
    namespaces.serve(inner, proxy, logs / "kube-proxy.log", _path())


def _start_containerd(node: Node, inner: int, *, fresh: bool) -> None:
    log = node.cluster.logs / node.name / "containerd.log"
    node.containerd_root.mkdir(parents=True, exist_ok=True)
    ctr = ["ctr", "--address", str(node.socket), "--namespace", "k8s.io"]
    node.socket.unlink(missing_ok=True)
    namespaces.serve(inner, ["containerd", f"--config={node.state}/containerd.toml"], log, _path())
    wait_for(f"containerd of {node.name}", lambda: succeeds([*ctr, "version"]), seconds=300, log=log)
    if fresh:
        # A new cluster on kept images: the old cluster's containers are not its own.
        if old := run([*ctr, "containers", "ls", "-q"]).split():
            run([*ctr, "containers", "rm", *old])
        images.prune(node)
        images.load(NODE_IMAGES, node)


def _readiness(node: Node) -> tuple[bool, str]:
    """Whether Kubernetes holds a node for ready, and when kubelet said so last."""
    path = "jsonpath={.status.conditions[?(@.type=='Ready')]['status','lastHeartbeatTime']}"
    answer = kubectl(node.cluster, "get", "node", node.name, "-o", path, check=False)
    status, _, heartbeat = answer.partition(" ")
    return status == "True", heartbeat


def _wait_ready(node: Node, since: str) -> None:
    def ready() -> bool:
        is_ready, heartbeat = _readiness(node)
        return is_ready and heartbeat != since

    log = node.cluster.logs / node.name / "kubelet.log"
    wait_for(f"{node.name} Ready", ready, seconds=300, log=log)


def claim_gpus(layout: Layout, gpus: Sequence[int]) -> None:
    """Claim GPUs that are not there, so many for each node: the scheduler counts them like real ones."""
    for node, count in zip(layout.nodes, gpus, strict=True):
        if namespaces.outside(node.marker):
            claim = {"nvidia.com/gpu": str(count)}
            change = {"status": {"capacity": claim, "allocatable": claim}}
            kubectl(layout, "patch", "node", node.name, "--subresource=status", "-p", json.dumps(change))


def is_running(layout: Layout) -> bool:
    """Whether the cluster's outer process lives."""
    return namespaces.inside(layout.marker) is not None
