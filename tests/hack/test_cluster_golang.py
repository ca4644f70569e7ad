"""Which Go will do."""

import pytest
from local_cluster import golang


@pytest.mark.parametrize(
    ("version", "will_do"),
    [("go1.26.0", True), ("go1.26.8", True), ("go2.0", True), ("go1.25.9", False), ("go1.19.8", False)],
)
def test_new_enough(version, will_do):
    assert golang.new_enough(version) is will_do


def test_the_pinned_toolchain_is_new_enough_and_has_a_checksum_for_each_architecture():
    assert golang.new_enough(golang.PINNED)
    assert set(golang.SUMS) == set(golang.ARCHITECTURES.values())
