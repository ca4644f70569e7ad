"""What the demo applies is its example, as the cluster can run it."""

import json

import yaml
from demo.__main__ import EXAMPLE, example
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import Distributed


def test_what_is_applied_is_the_example_and_strings_stay_strings() -> None:
    applied = json.loads(example(by_operator=True))
    assert applied == yaml.safe_load(EXAMPLE.read_text())
    assert applied["spec"]["transfer"]["learningRate"] == "5e-2"


def test_without_a_training_operator_gangs_are_indexed_jobs() -> None:
    written = Trenchcoat.from_yaml(EXAMPLE).spec
    spec = Trenchcoat.model_validate(json.loads(example(by_operator=False))).spec
    scheduling = written.scheduling.model_copy(update={"distributed": Distributed.INDEXED_JOB})
    assert spec == written.model_copy(update={"scheduling": scheduling})
