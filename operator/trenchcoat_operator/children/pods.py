"""The pod that runs a stage program; it passes the restricted Pod Security Standard."""

from collections.abc import Iterable, Mapping
from typing import Any

from trenchcoat_api import constants
from trenchcoat_api.spec import Tracking, TrenchcoatSpec
from trenchcoat_api.stages import Stage

from trenchcoat_operator.model.plan import Object
from trenchcoat_operator.settings import PodDefaults
from trenchcoat_operator.works import graph
from trenchcoat_operator.works.graph import Work

USER = 65532
_TOKEN = "token"  # noqa: S105  (the file that the kubelet writes it to)
_SINGLE_GPU = (Stage.CRIA, Stage.EVALUATE)
"""Stages of one GPU, unless the spec says otherwise."""
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_LOST_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def tolerations(spec: TrenchcoatSpec, stage: Stage, gpus: int) -> list[dict[str, Any]]:
    """The user's, one for the taint that GPU nodes commonly carry, and short ones for lost nodes.

    The checkpoint makes it cheap to go on elsewhere, so a lost node is waited for a minute, not five.
    """
    result = list(graph.overrides(spec, stage).tolerations)
    if gpus:
        result.append({"key": spec.scheduling.gpu_resource, "operator": "Exists"})
    for taint in _LOST_NODE_TAINTS:
        if not any(item.get("key") == taint for item in result):
            result.append(
                {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}
            )
    return result


def affinity(spec: TrenchcoatSpec, work: Work) -> dict[str, Any]:
    """The user's; pods of one GPU otherwise prefer nodes of the namespace where such pods run.

    The scheduler would spread them, and a gang that wants whole nodes would find none.
    """
    wanted = graph.overrides(spec, work.stage).affinity
    if work.stage not in (*_SINGLE_GPU, Stage.SELECT):  # select is over too soon to stand beside it
        return wanted
    if work.pods * work.gpus != 1:
        return wanted
    stages = [stage.value for stage in _SINGLE_GPU]
    beside = {"matchExpressions": [{"key": constants.LABEL_STAGE, "operator": "In", "values": stages}]}
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": beside}
    preferred = {"weight": 100, "podAffinityTerm": term}
    return {"podAffinity": {_PREFERRED: [preferred]}} | wanted


def avoiding(wanted: dict[str, Any], nodes: Iterable[str]) -> dict[str, Any]:
    """An affinity that also prefers other nodes than these: they have just refused such a pod."""
    others = [{"weight": 100, "preference": {"matchFields": [_other_than(node)]}} for node in nodes]
    of_nodes = wanted.get("nodeAffinity") or {}
    preferred = [*(of_nodes.get(_PREFERRED) or []), *others]
    return {**wanted, "nodeAffinity": {**of_nodes, _PREFERRED: preferred}}


def _other_than(node: str) -> dict[str, Any]:
    return {"key": "metadata.name", "operator": "NotIn", "values": [node]}


def arguments(work: Work) -> list[str]:
    """What follows the trainer image's entrypoint.

    The entrypoint is the image's own, because it brings the init process that a signal needs to be heard.
    """
    line = [work.stage.value, "--spec", f"{constants.SPEC_MOUNT_PATH}/{constants.SPEC_FILE}"]
    if work.artifact.cria is not None:
        line += ["--cria", str(work.artifact.cria.index)]
    if work.artifact.boundary is not None:  # what leaves the Cria before it
        line += ["--cria", str(work.artifact.boundary - 1)]
    if work.gpus > 1:
        line += ["--processes", str(work.gpus)]
    return [*line, *work.arguments]


def environment(spec: TrenchcoatSpec, stage: Stage, defaults: PodDefaults) -> list[dict[str, Any]]:
    """Variables of a stage; credentials come by reference alone.

    A token that may write to the export's destination goes to the export alone.
    """
    result: list[dict[str, Any]] = [
        {"name": "HOME", "value": "/tmp"},  # noqa: S108  (an emptyDir of the pod's own)
    ]
    if (secret := spec.store.credentials_secret_ref) is not None:
        result += [
            _from_secret(constants.ENV_ACCESS_KEY, secret.name, secret.keys.access_key),
            _from_secret(constants.ENV_SECRET_KEY, secret.name, secret.keys.secret_key),
            _from_secret(constants.ENV_SESSION_TOKEN, secret.name, secret.keys.session_token, optional=True),
        ]
    else:
        file = f"{constants.WEB_IDENTITY_MOUNT_PATH}/{_TOKEN}"
        result.append({"name": constants.ENV_WEB_IDENTITY_TOKEN_FILE, "value": file})
    result += _of_trackers(spec.tracking)
    if not defaults.fixed_user:  # a user that the image does not know has no name, which torch asks for
        result.append({"name": "USER", "value": "trenchcoat"})
    tokens = (
        (constants.ENV_HF_TOKEN, spec.model.token_secret_ref),
        (constants.ENV_HF_DATA_TOKEN, spec.data.token_secret_ref),
        (constants.ENV_HF_EXPORT_TOKEN, spec.export.token_secret_ref if stage is Stage.EXPORT else None),
    )
    for variable, token in tokens:
        if token is not None:
            result.append(_from_secret(variable, token.name, token.key))
    return result


def _of_trackers(tracking: Tracking | None) -> list[dict[str, Any]]:
    """What trackers' clients read their credentials from."""
    mlflow = tracking.ml_flow if tracking is not None else None
    result = []
    if mlflow is not None and (token := mlflow.token_secret_ref) is not None:
        result.append(_from_secret(constants.ENV_MLFLOW_TOKEN, token.name, token.key))
    if mlflow is not None and (basic := mlflow.basic_auth_secret_ref) is not None:
        result += [
            _from_secret(constants.ENV_MLFLOW_USER, basic.name, constants.BASIC_AUTH_USER),
            _from_secret(constants.ENV_MLFLOW_PASSWORD, basic.name, constants.BASIC_AUTH_PASSWORD),
        ]
    if tracking is not None and tracking.trackio is not None:
        token = tracking.trackio.token_secret_ref
        result.append(_from_secret(constants.ENV_TRACKIO_TOKEN, token.name, token.key))
    return result


def _from_secret(variable: str, secret: str, key: str, *, optional: bool = False) -> dict[str, Any]:
    reference: dict[str, Any] = {"name": secret, "key": key}
    if optional:
        reference["optional"] = True
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def _token(audience: str) -> dict[str, Any]:
    seconds = constants.WEB_IDENTITY_SECONDS
    return {
        "serviceAccountToken": {"audience": audience, "expirationSeconds": seconds, "path": _TOKEN},
    }


def _merged(base: list[dict[str, Any]], users: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    # The user's word stands where both name the same thing; the order stays, for later ones may use earlier.
    added = [dict(item) for item in users]
    named = {item["name"] for item in added}
    return [item for item in base if item["name"] not in named] + added


def _resources(spec: TrenchcoatSpec, work: Work, defaults: PodDefaults) -> dict[str, Any]:
    overrides = graph.overrides(spec, work.stage)
    wanted = overrides.resources
    requests = {"cpu": wanted.cpu or defaults.cpu, "memory": wanted.memory or defaults.memory}
    limits: dict[str, str] = {}
    if cpu_limit := wanted.cpu_limit or defaults.cpu_limit:
        limits["cpu"] = cpu_limit
    if memory_limit := wanted.memory or defaults.memory_limit:
        limits["memory"] = memory_limit
    if wanted.ephemeral_storage:
        requests["ephemeral-storage"] = wanted.ephemeral_storage
    for item in overrides.extended_resources:
        requests[item["name"]] = limits[item["name"]] = item["quantity"]
    template = overrides.resource_claim_template_name
    if work.gpus and not template:
        requests[spec.scheduling.gpu_resource] = limits[spec.scheduling.gpu_resource] = str(work.gpus)
    result: dict[str, Any] = {"requests": requests, "limits": limits} if limits else {"requests": requests}
    if template:
        result["claims"] = [{"name": template}]
    return result


def pod_spec(
    spec: TrenchcoatSpec, work: Work, spec_name: str, container: str, defaults: PodDefaults
) -> Object:
    """The pod's spec."""
    wanted = graph.overrides(spec, work.stage)
    volumes: list[dict[str, Any]] = [
        {"name": "spec", "configMap": {"name": spec_name}},
        {"name": "tmp", "emptyDir": {}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "spec", "mountPath": constants.SPEC_MOUNT_PATH, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
    ]
    if work.gpus > 1:  # processes of one pod talk through shared memory
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
    identity = spec.store.web_identity
    if identity is not None:
        volumes.append({"name": "store-token", "projected": {"sources": [_token(identity.audience)]}})
        mounts.append(
            {"name": "store-token", "mountPath": constants.WEB_IDENTITY_MOUNT_PATH, "readOnly": True}
        )
    result: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": defaults.grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            **({"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER} if defaults.fixed_user else {}),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": container,
                "image": wanted.image or defaults.image,
                "imagePullPolicy": defaults.pull_policy,
                "args": arguments(work),
                "env": _merged(_merged(environment(spec, work.stage, defaults), defaults.env), wanted.env),
                "resources": _resources(spec, work, defaults),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [*mounts, *wanted.volume_mounts],
            }
        ],
        "volumes": [*volumes, *wanted.volumes],
    }
    if defaults.pull_secrets:
        result["imagePullSecrets"] = [{"name": name} for name in defaults.pull_secrets]
    if spec.scheduling.priority_class_name:
        result["priorityClassName"] = spec.scheduling.priority_class_name
    if wanted.runtime_class_name:
        result["runtimeClassName"] = wanted.runtime_class_name
    if account := wanted.service_account_name or (identity.service_account_name if identity else None):
        result["serviceAccountName"] = account
    if template := wanted.resource_claim_template_name:
        result["resourceClaims"] = [{"name": template, "resourceClaimTemplateName": template}]
    if wanted.node_selector:
        result["nodeSelector"] = dict(wanted.node_selector)
    if preferences := affinity(spec, work):
        result["affinity"] = preferences
    if tolerated := tolerations(spec, work.stage, work.gpus):
        result["tolerations"] = tolerated
    return result
