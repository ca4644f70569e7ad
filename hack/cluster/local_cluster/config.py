"""What each component is told: command lines and configuration files, as pure functions of the layout."""

from __future__ import annotations

import json
from pathlib import Path

from .layout import Layout, Node

CNI_PLUGINS = "/usr/lib/cni"  # Debian's containernetworking-plugins
# Tests take nodes away: notice within seconds, not minutes. Pods leave a lost node after LOST_AFTER.
LEASE_SECONDS = 12
GRACE_SECONDS = 16
LOST_AFTER = 10
# By default 20 requests a second: with thousands of Jobs the controllers would be what is measured.
QUICK_CLIENT = ("--kube-api-qps=300", "--kube-api-burst=600")


def kubeconfig(layout: Layout, identity: str) -> str:
    """Credentials of one identity, as JSON, which is YAML."""
    pki = layout.state / "pki"
    cluster = {"server": f"https://{layout.network.api}:6443", "certificate-authority": str(pki / "ca.crt")}
    user = {"client-certificate": str(pki / f"{identity}.crt"), "client-key": str(pki / f"{identity}.key")}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": layout.name, "cluster": cluster}],
            "users": [{"name": identity, "user": user}],
            "contexts": [{"name": layout.name, "context": {"cluster": layout.name, "user": identity}}],
            "current-context": layout.name,
        },
        indent=1,
    )


def etcd(program: str) -> list[str]:
    """Etcd; its data on the outer namespace's own /run, in memory."""
    clients, peers = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return [
        program,
        "--data-dir=/run/etcd",
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        "--log-level=warn",
        "--logger=zap",
    ]


def api_server(layout: Layout) -> list[str]:
    """Kube-apiserver; it reaches webhooks at pod addresses, as no kube-proxy runs beside it."""
    pki = layout.state / "pki"
    return [
        "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={layout.network.api}",
        "--secure-port=6443",
        f"--service-cluster-ip-range={layout.network.services}",
        f"--tls-cert-file={pki}/api.crt",
        f"--tls-private-key-file={pki}/api.key",
        f"--cert-dir={pki}",
        f"--client-ca-file={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/kubelet-client.crt",
        f"--kubelet-client-key={pki}/kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={pki}/ca.crt",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki}/front-proxy.crt",
        f"--proxy-client-key-file={pki}/front-proxy.key",
        "--enable-aggregator-routing",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki}/service-account.pub",
        f"--service-account-signing-key-file={pki}/service-account.key",
        f"--default-not-ready-toleration-seconds={LOST_AFTER}",
        f"--default-unreachable-toleration-seconds={LOST_AFTER}",
        "--allow-privileged",
        "--profiling=false",
    ]


def controller_manager(layout: Layout) -> list[str]:
    """Kube-controller-manager."""
    pki = layout.state / "pki"
    return [
        "kube-controller-manager",
        f"--kubeconfig={layout.state}/controller-manager.kubeconfig",
        f"--authentication-kubeconfig={layout.state}/controller-manager.kubeconfig",
        f"--authorization-kubeconfig={layout.state}/controller-manager.kubeconfig",
        f"--root-ca-file={pki}/ca.crt",
        f"--service-account-private-key-file={pki}/service-account.key",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        "--use-service-account-credentials",
        "--allocate-node-cidrs=false",
        "--leader-elect=false",
        "--node-monitor-period=2s",
        f"--node-monitor-grace-period={GRACE_SECONDS}s",
        *QUICK_CLIENT,
        "--profiling=false",
    ]


def scheduler(layout: Layout) -> list[str]:
    """Kube-scheduler."""
    own = f"{layout.state}/scheduler.kubeconfig"
    return [
        "kube-scheduler",
        f"--kubeconfig={own}",
        f"--authentication-kubeconfig={own}",
        f"--authorization-kubeconfig={own}",
        *QUICK_CLIENT,
        "--leader-elect=false",
        "--profiling=false",
    ]


def containerd(node: Node, pause_image: str) -> str:
    """Containerd's config.toml."""
    return f"""\
version = 2
root = "{node.containerd_root}"
state = "/run/containerd/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = "{node.socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause_image}"
# Lowering a process's oom_score_adj needs CAP_SYS_RESOURCE, which a machine may lack.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
discard_unpacked_layers = true
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PLUGINS}"
conf_dir = "{node.state}/cni"
"""


def cni(node: Node) -> str:
    """The pod network: point to point, so that service traffic between pods of one node passes iptables."""
    pods = node.cluster.network.pods(node.number)
    ipam = {
        "type": "host-local",
        "dataDir": "/run/cni",
        "ranges": [[{"subnet": pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [{"type": "ptp", "ipMasq": False, "ipam": ipam}]
    return json.dumps({"cniVersion": "0.4.0", "name": "trenchcoat", "plugins": plugins}, indent=1)


def kubelet(node: Node) -> str:
    """KubeletConfiguration, as JSON."""
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{node.cluster.state}/pki/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{node.cgroup}",
            "clusterDNS": [node.cluster.network.dns],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": f"unix://{node.socket}",
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
            "failSwapOn": False,
            # Images come by hack/cluster alone; one thrown away could not be pulled again.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "nodeLeaseDurationSeconds": LEASE_SECONDS,
            "nodeStatusUpdateFrequency": "4s",
            "oomScoreAdj": 0,
            "podLogsDir": f"{node.state}/pod-logs",
            "resolvConf": f"{node.state}/resolv.conf",
            # A pod sees a changed Secret after this: the training operator waits for one at its start.
            "syncFrequency": "5s",
            "volumePluginDir": f"{node.state}/volume-plugins",
        },
        indent=1,
    )


def kubelet_command(node: Node) -> list[str]:
    """Kubelet's flags: what its configuration file cannot hold."""
    return [
        "kubelet",
        f"--config={node.state}/kubelet.json",
        f"--kubeconfig={node.state}/kubelet.kubeconfig",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
        f"--root-dir={node.state}/kubelet",
        f"--cert-dir={node.state}/kubelet-pki",
    ]


def proxy(node: Node) -> str:
    """KubeProxyConfiguration, as JSON; connection-tracking limits belong to the host and stay as they are."""
    return json.dumps(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clientConnection": {"kubeconfig": f"{node.state}/proxy.kubeconfig"},
            "clusterCIDR": node.cluster.network.all_pods,
            "conntrack": {"maxPerCore": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
            "hostnameOverride": node.name,
            "oomScoreAdj": 0,
        },
        indent=1,
    )


def node_files(node: Node, pause_image: str) -> dict[Path, str]:
    """Every file that a node's components read."""
    return {
        node.state / "containerd.toml": containerd(node, pause_image),
        node.state / "cni" / "10-trenchcoat.conflist": cni(node),
        node.state / "kubelet.json": kubelet(node),
        node.state / "kubelet.kubeconfig": kubeconfig(node.cluster, node.name),
        node.state / "proxy.json": proxy(node),
        node.state / "proxy.kubeconfig": kubeconfig(node.cluster, "proxy"),
        node.state / "resolv.conf": "",  # Nothing outside the cluster has a name.
    }
