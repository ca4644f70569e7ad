"""One control plane for the tests of this folder, with the definition of Trenchcoats."""

from collections.abc import Iterator

import pytest

from tests.control_plane import ControlPlane, control_plane


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane")) as made:
        made.define()
        yield made
