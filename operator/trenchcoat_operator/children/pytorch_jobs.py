"""PyTorchJobs of the Kubeflow training operator, v1."""

from trenchcoat_api.resource import Trenchcoat

from trenchcoat_operator.children.attempts import Attempt
from trenchcoat_operator.model.observed import ChildKind
from trenchcoat_operator.model.plan import Object


class PyTorchJob:
    """A gang as a PyTorchJob: the training operator has its pods find one another."""

    kind = ChildKind.PYTORCH_JOB

    def manifest(self, attempt: Attempt) -> Object:
        """The PyTorchJob."""
        work = attempt.work
        replicas = {"Master": {"replicas": 1, "restartPolicy": "Never", "template": attempt.template}}
        if work.pods > 1:
            workers = {"replicas": work.pods - 1, "restartPolicy": "Never", "template": attempt.template}
            replicas["Worker"] = workers
        policy: Object = {"cleanPodPolicy": "Running"}
        if attempt.queued:
            policy["suspend"] = True
        spec: Object = {"runPolicy": policy, "pytorchReplicaSpecs": replicas}
        if work.gpus > 1:
            spec["nprocPerNode"] = str(work.gpus)
        return {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": attempt.metadata,
            "spec": spec,
        }

    def services(self, trenchcoat: Trenchcoat) -> tuple[Object, ...]:
        """None: the training operator makes its own."""
        return ()
