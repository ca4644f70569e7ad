import ipaddress

import pytest
from local_cluster.layout import Layout, Network, free_slot


def test_ranges_do_not_overlap():
    network = Network(3)
    ranges = [network.services, "10.203.0.0/24", *(network.pods(number) for number in range(1, 5))]
    parsed = [ipaddress.ip_network(text) for text in ranges]
    for at, one in enumerate(parsed):
        assert one.subnet_of(ipaddress.ip_network(network.everything))
        assert not any(one.overlaps(other) for other in parsed[at + 1 :])
    assert all(
        ipaddress.ip_network(network.pods(number)).subnet_of(ipaddress.ip_network(network.all_pods))
        for number in range(1, 5)
    )


@pytest.mark.parametrize(
    ("routes", "slot"),
    [
        ([], 0),
        (["192.0.2.0/24"], 0),
        (["10.200.0.0/16", "10.200.0.0/24"], 1),
        (["10.200.0.0/16", "10.201.7.0/24", "10.203.0.0/16"], 2),
    ],
)
def test_free_slot_avoids_the_routes_of_the_host(routes, slot):
    assert free_slot(routes) == slot


def test_no_free_slot():
    with pytest.raises(ValueError, match="no free address range"):
        free_slot(["10.0.0.0/8"])


def test_clusters_share_nothing_but_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    one, two = Layout("demo", slot=0), Layout("test", slot=1)
    for attribute in ("state", "cgroup", "marker", "link", "kubeconfig", "network"):
        assert getattr(one, attribute) != getattr(two, attribute)
    assert one.nodes[0].containerd_root != two.nodes[0].containerd_root


def test_a_link_name_fits_the_kernel():
    assert len(Layout("a-very-long-cluster-name-indeed", slot=31).link) <= 15


def test_unknown_node():
    with pytest.raises(ValueError, match="no node node-9; there are node-1, node-2"):
        Layout("demo").node("node-9")
