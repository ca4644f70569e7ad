"""Names that users, the operator and the trainer agree on."""

GROUP = "trenchcoat.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "Trenchcoat"
PLURAL = "trenchcoats"
SINGULAR = "trenchcoat"
SHORT_NAME = "tc"
CATEGORY = "ml"

# Labels on every child object, so that it can be found by one live list.
LABEL_NAME = f"{GROUP}/name"  # the Trenchcoat that owns the object
LABEL_STAGE = f"{GROUP}/stage"  # the stage that it runs, such as collect
LABEL_CRIA = f"{GROUP}/cria"  # the Cria's index in decimal, on Cria Jobs alone
LABEL_RENDEZVOUS = f"{GROUP}/rendezvous"  # on a gang's pods: the Service under which they find one another
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"  # trenchcoat, on all that the operator makes
MANAGED_BY = "trenchcoat"

# Annotations on every child object.
ANNOTATION_KEY = f"{GROUP}/artifact-key"  # the content key of the artifact that the object produces
ANNOTATION_ATTEMPT = f"{GROUP}/attempt"  # 1 for the first try
ANNOTATION_SPEC = f"{GROUP}/spec"  # name of the ConfigMap that its pods read the spec from
ANNOTATION_EXPECTS_NODES = f"{GROUP}/expects-nodes"
"""true: made without free GPUs, for an autoscaler to see."""
ANNOTATION_TEMPLATE = f"{GROUP}/pod-template"  # hash of the pod template that it was made with

# Annotations that the operator adds to a child that failed, so that the verdict outlives its pods.
ANNOTATION_OUTCOME = f"{GROUP}/outcome"  # the class of the failure, such as OutOfMemory
ANNOTATION_KEPT = f"{GROUP}/kept"  # "true": the operator took its time to live away once
ANNOTATION_OUTCOME_MESSAGE = f"{GROUP}/outcome-message"  # what it said
ANNOTATION_SAVED = f"{GROUP}/saved"  # share of the stage that its latest checkpoint held, from 0 to 1

# A user sets this annotation on a Trenchcoat to "true" to stitch and export in spite of spec.gates.
ANNOTATION_OVERRIDE_GATE = f"{GROUP}/override-gate"

# Only on Trenchcoats with spec.retention Delete: they go after their artifacts.
FINALIZER = f"{GROUP}/artifacts"

# Kueue reads these labels on Jobs.
LABEL_KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"  # spec.scheduling.queueName
LABEL_KUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"  # spec.scheduling.workloadPriorityClassName

# Where a stage program finds its spec in a pod.
SPEC_MOUNT_PATH = "/etc/trenchcoat"
SPEC_FILE = "trenchcoat.yaml"

# How a stage program gets the store's credentials: the names that every S3 client knows.
ENV_ACCESS_KEY = "AWS_ACCESS_KEY_ID"
"""The store's access key; in pods from spec.store.credentialsSecretRef."""
ENV_SECRET_KEY = "AWS_SECRET_ACCESS_KEY"  # noqa: S105  (a variable's name, not a secret)
"""Its secret key; from the same Secret."""
ENV_SESSION_TOKEN = "AWS_SESSION_TOKEN"  # noqa: S105
"""The session token of temporary keys; from the same Secret, where it has one."""
ENV_WEB_IDENTITY_TOKEN_FILE = "AWS_WEB_IDENTITY_TOKEN_FILE"  # noqa: S105
"""The file with a ServiceAccount's token, in place of keys, where spec.store.webIdentity is set."""
WEB_IDENTITY_MOUNT_PATH = "/var/run/secrets/trenchcoat.dev"
WEB_IDENTITY_SECONDS = 3600  # how long a token of a ServiceAccount lives; the kubelet writes another in time
ENV_HF_TOKEN = "HF_TOKEN"  # noqa: S105
"""Hugging Face token for a gated model; in pods from spec.model.tokenSecretRef."""
ENV_HF_DATA_TOKEN = "TRENCHCOAT_HF_DATA_TOKEN"  # noqa: S105
"""Hugging Face token for the data set, where it needs another; from spec.data.tokenSecretRef."""
ENV_HF_EXPORT_TOKEN = "TRENCHCOAT_HF_EXPORT_TOKEN"  # noqa: S105
"""Hugging Face token that may write to spec.export.destination; from spec.export.tokenSecretRef."""
ENV_MLFLOW_TOKEN = "MLFLOW_TRACKING_TOKEN"  # noqa: S105
"""MLflow's own name of its token; from spec.tracking.mlflow.tokenSecretRef."""
ENV_MLFLOW_USER = "MLFLOW_TRACKING_USERNAME"
"""MLflow's own name of who it belongs to; from spec.tracking.mlflow.basicAuthSecretRef."""
ENV_MLFLOW_PASSWORD = "MLFLOW_TRACKING_PASSWORD"  # noqa: S105
"""MLflow's own name of a password; from spec.tracking.mlflow.basicAuthSecretRef."""
ENV_TRACKIO_TOKEN = "TRACKIO_WRITE_TOKEN"  # noqa: S105
"""trackio's own name of its token; from spec.tracking.trackio.tokenSecretRef."""
BASIC_AUTH_USER, BASIC_AUTH_PASSWORD = "username", "password"  # keys of kubernetes.io/basic-auth

# A child's name is NAME-STAGE[-NN]-KEY8-ATTEMPT, and its pods' names must stay within 63 characters.
MAX_NAME_LENGTH = 32
