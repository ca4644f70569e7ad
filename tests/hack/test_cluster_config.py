import json
import tomllib

import pytest
from local_cluster import config, pki
from local_cluster.layout import Layout


@pytest.fixture
def layout(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Layout("demo", slot=2)


def test_containerd_reads_its_configuration(layout):
    node = layout.nodes[1]
    read = tomllib.loads(config.containerd(node, "localhost/pause:1"))
    cri = read["plugins"]["io.containerd.grpc.v1.cri"]
    assert read["grpc"]["address"] == str(node.socket)
    assert cri["sandbox_image"] == "localhost/pause:1"
    assert cri["restrict_oom_score_adj"] is True
    assert cri["containerd"]["discard_unpacked_layers"] is True


def test_pods_of_two_nodes_get_different_addresses(layout):
    def subnet(node):
        return json.loads(config.cni(node))["plugins"][0]["ipam"]["ranges"][0][0]["subnet"]

    assert [subnet(node) for node in layout.nodes] == ["10.202.17.0/24", "10.202.18.0/24"]


def test_kubelet_stays_within_its_cgroup_and_folder(layout):
    node = layout.nodes[0]
    read = json.loads(config.kubelet(node))
    assert read["cgroupRoot"] == "/trenchcoat-demo/node-1"
    assert read["enforceNodeAllocatable"] == []
    for path in (read["podLogsDir"], read["volumePluginDir"], read["resolvConf"]):
        assert path.startswith(str(node.state))


def test_a_kubeconfig_names_the_api_server_and_one_identity(layout):
    read = json.loads(config.kubeconfig(layout, "scheduler"))
    assert read["clusters"][0]["cluster"]["server"] == "https://10.202.0.1:6443"
    assert read["users"][0]["user"]["client-certificate"].endswith("/demo/pki/scheduler.crt")


def test_every_file_of_a_node_belongs_to_it(layout):
    node = layout.nodes[0]
    files = config.node_files(node, "localhost/pause:1")
    assert all(path.is_relative_to(node.state) for path in files)


def test_api_certificate_covers_every_way_to_reach_it(layout):
    names = pki.api_names(layout).split(",")
    assert {"IP:10.202.0.1", "IP:10.202.128.1", "IP:127.0.0.1", "DNS:kubernetes.default.svc"} <= set(names)


def test_certificates_verify(layout):
    from local_cluster.shell import run

    folder = pki.make(layout)
    for name in [*pki.identities(layout), "api"]:
        run(["openssl", "verify", "-CAfile", folder / "ca.crt", folder / f"{name}.crt"])
    text = run(["openssl", "x509", "-in", folder / "node-1.crt", "-noout", "-subject"])
    assert "O = system:nodes, CN = system:node:node-1" in text
