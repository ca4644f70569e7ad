"""Where losses are told to as they come: trackers beside the status and the report."""

from pydantic import Field

from trenchcoat_api.base import Camel
from trenchcoat_api.rules import Rule
from trenchcoat_api.spec.sources import SecretKeyRef, SecretRef
from trenchcoat_api.strings import TrackingServer


class MLflow(Camel):
    """A tracking server of MLflow."""

    rules = (
        Rule(
            cel="!has(self.tokenSecretRef) || !has(self.basicAuthSecretRef)",
            holds=lambda mlflow: mlflow.token_secret_ref is None or mlflow.basic_auth_secret_ref is None,
            message="tokenSecretRef and basicAuthSecretRef are both set, and one is taken: remove the other",
            field="basicAuthSecretRef",
        ),
    )

    uri: TrackingServer = Field(description="The tracking server, such as https://mlflow.example:5000.")
    experiment: str = Field(
        default="trenchcoat",
        description="The experiment, made where there is none.",
        min_length=1,
        max_length=200,
    )
    token_secret_ref: SecretKeyRef | None = Field(
        default=None, description="A token for the server, in the Trenchcoat's own namespace."
    )
    basic_auth_secret_ref: SecretRef | None = Field(
        default=None,
        description=(
            "User name and password for the server: a Secret of type kubernetes.io/basic-auth, with the keys "
            "username and password."
        ),
    )


class Trackio(Camel):
    """A server of trackio that somebody runs; none of it is on a hub."""

    uri: TrackingServer = Field(description="The server, such as https://trackio.example:7860.")
    project: str = Field(
        default="trenchcoat",
        description="The project, made where there is none.",
        min_length=1,
        max_length=200,
    )
    token_secret_ref: SecretKeyRef = Field(
        description="The server's write token, in the Trenchcoat's own namespace; it takes nothing without."
    )


class Tracking(Camel):
    """Trackers; the stages' image must have their clients (the extra `tracking`)."""

    rules = (
        Rule(
            cel="self.tensorBoard || has(self.mlflow) || has(self.trackio)",
            holds=lambda tracking: (
                tracking.tensor_board or tracking.ml_flow is not None or tracking.trackio is not None
            ),
            message=(
                "no tracker is named: set tensorBoard, name a server in mlflow or trackio, or remove tracking"
            ),
            field="tensorBoard",
        ),
    )

    tensor_board: bool = Field(
        default=False, description="Whether stages leave event files of TensorBoard in the store."
    )
    ml_flow: MLflow | None = Field(
        default=None, alias="mlflow", description="A server of MLflow that stages tell their losses."
    )
    trackio: Trackio | None = Field(
        default=None, description="A server of trackio that stages tell their losses."
    )
