"""What the spec asks for and the cluster does not serve: PyTorchJobs, where nobody installed them."""

from trenchcoat_api.spec import Distributed
from trenchcoat_api.status import TRAINING_OPERATOR_MISSING

from trenchcoat_operator.children import jobs
from trenchcoat_operator.model.observed import ChildKind, Problem
from trenchcoat_operator.reconcile.look import Look
from trenchcoat_operator.works.graph import Work

_MISSING = Problem(
    TRAINING_OPERATOR_MISSING,
    "the cluster has no PyTorchJob: install the Kubeflow training operator (v1, PyTorchJob enabled) by "
    "`kubectl apply --server-side -k "
    '"github.com/kubeflow/training-operator.git/manifests/overlays/standalone?ref=v1.9.3"`, or set '
    "spec.scheduling.distributed to IndexedJob, which needs none",
)


def of_work(work: Work, look: Look) -> Problem | None:
    """What is missing for one work."""
    runs = jobs.kind(look.trenchcoat.spec, work) is ChildKind.PYTORCH_JOB
    return _MISSING if runs and not look.observed.training_operator else None


def of_run(look: Look) -> Problem | None:
    """What is missing for any work that is still to come, those of a model that was not read yet included."""
    if look.trenchcoat.spec.scheduling.distributed is not Distributed.PYTORCH_JOB:
        return None
    if look.graph.crias and not any(
        work.distributed and work.key in look.needed for work in look.graph.works
    ):
        return None
    return None if look.observed.training_operator else _MISSING
