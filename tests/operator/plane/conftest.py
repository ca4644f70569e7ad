"""One control plane for the tests of this folder, with the definition of Trenchcoats."""

from collections.abc import Iterator

import pytest

from tests.control_plane import ControlPlane, control_plane
from tests.minio_server import MinioServer, minio_or_skip

GATES = "MutatingAdmissionPolicy=true,DRAExtendedResource=true"
RUNTIME = "admissionregistration.k8s.io/v1beta1=true"


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("plane")
    with control_plane(folder, gates=GATES, runtime=RUNTIME) as made:
        made.define()
        yield made


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    with minio_or_skip(tmp_path_factory.mktemp("minio")) as made:
        yield made
