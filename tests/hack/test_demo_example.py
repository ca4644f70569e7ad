"""What the demo applies is its example, as the cluster can run it."""

from demo.__main__ import EXAMPLE, example
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import Distributed


def test_without_a_training_operator_gangs_are_indexed_jobs() -> None:
    written = Trenchcoat.from_yaml(EXAMPLE).spec
    assert Trenchcoat.model_validate(example(by_operator=True)).spec == written
    spec = Trenchcoat.model_validate(example(by_operator=False)).spec
    assert spec.scheduling.distributed is Distributed.INDEXED_JOB
    scheduling = written.scheduling.model_copy(update={"distributed": Distributed.INDEXED_JOB})
    assert spec == written.model_copy(update={"scheduling": scheduling})
