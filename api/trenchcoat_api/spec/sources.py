"""What a run reads, and the store that holds what it makes."""

from pydantic import Field
from pydantic.alias_generators import to_camel

from trenchcoat_api.base import Camel
from trenchcoat_api.presets import SHIPPED, preset_field
from trenchcoat_api.rules import Rule
from trenchcoat_api.strings import (
    Audience,
    Bucket,
    CaBundle,
    DataSource,
    Endpoint,
    ModelSource,
    Name,
    Prefix,
    Region,
    RoleArn,
    SecretKey,
    Share,
)


class SecretRef(Camel):
    """A Secret in the Trenchcoat's own namespace."""

    name: Name = Field(description="Name of the Secret.")


class SecretKeyRef(SecretRef):
    """One key of a Secret in the Trenchcoat's own namespace."""

    key: SecretKey = Field(description="Key within the Secret.")


class Model(Camel):
    """The teacher."""

    rules = (
        Rule(
            cel="!has(self.tokenSecretRef) || self.source.startsWith('hf://')",
            holds=lambda model: model.token_secret_ref is None or model.source.startswith("hf://"),
            message="tokenSecretRef is for hf:// sources alone: remove it, or name such a source",
            field="tokenSecretRef",
        ),
        Rule(
            cel="self.revision == 'main' || self.source.startsWith('hf://')",
            holds=lambda model: model.revision == "main" or model.source.startswith("hf://"),
            message="revision is for hf:// sources alone: remove it, or name such a source",
            field="revision",
        ),
    )

    source: ModelSource = Field(
        description=(
            "The teacher's checkpoint in Hugging Face's layout (config.json, *.safetensors, tokenizer): "
            "hf://OWNER/NAME, s3://BUCKET/PREFIX in the store of spec.store, or file:///FOLDER."
        ),
    )
    revision: str = Field(
        default="main", description="Branch, tag or commit of an hf:// source.", min_length=1, max_length=200
    )
    token_secret_ref: SecretKeyRef | None = Field(
        default=None, description="Hugging Face token for a gated hf:// source."
    )


def _hub_only(name: str, unused: str | None, cel: str) -> Rule:
    """A field of the data that only a source on the hub has a use for."""
    field = to_camel(name)
    return Rule(
        cel=f"{cel} || self.source.startsWith('hf://')",
        holds=lambda data: getattr(data, name) == unused or data.source.startswith("hf://"),
        message=f"{field} is for hf:// sources alone: remove it, or name such a source",
        field=field,
    )


class StartPositions(Camel):
    """Positions that training's sequences start at.

    Feature maps see queries and keys after RoPE, and so learn the angles that they meet. The teacher's hidden
    states do not depend on where a sequence starts: activations are collected from position 0, and serve any.
    """

    share: Share = preset_field(
        SHIPPED.start_share,
        "Probability, below 1, that a micro-batch of attention transfer, LoRA by Cria or the stitch starts "
        "at a random position in place of 0, so that the student learns positions past "
        "data.sequenceLength, too. 0 switches it off.",
    )
    below: int | None = Field(
        default=None,
        description=(
            "Random starts are drawn from the positions below this. By default so that sequences end within "
            "8 times data.sequenceLength and the teacher's max_position_embeddings."
        ),
        ge=1,
        le=100_000_000,
    )

    @property
    def are_random(self) -> bool:
        """Whether any sequence starts elsewhere than at 0."""
        return float(self.share) > 0


class Data(Camel):
    """The text that activations are collected on and adapters are trained on."""

    rules = (
        _hub_only("config", None, "!has(self.config)"),
        _hub_only("split", "train", "self.split == 'train'"),
        _hub_only("revision", "main", "self.revision == 'main'"),
        _hub_only("token_secret_ref", None, "!has(self.tokenSecretRef)"),
    )

    source: DataSource = Field(
        description=(
            "The text: s3://BUCKET/GLOB in the store of spec.store or file:///GLOB, files ending in "
            ".parquet, or in .jsonl (.ndjson, .json) or .txt, plain or compressed with .gz or .zst; or "
            "hf://datasets/OWNER/NAME, a data set of the Hugging Face hub."
        ),
    )
    config: str | None = Field(
        default=None,
        description="Configuration of an hf:// data set, where it has several.",
        min_length=1,
        max_length=200,
    )
    split: str = Field(
        default="train", description="Split of an hf:// data set.", min_length=1, max_length=200
    )
    revision: str = Field(
        default="main",
        description="Branch, tag or commit of an hf:// data set.",
        min_length=1,
        max_length=200,
    )
    token_secret_ref: SecretKeyRef | None = Field(
        default=None,
        description="Hugging Face token for a gated hf:// data set; by default that of spec.model.",
    )
    text_field: str = Field(
        default="text",
        description="The field of a record, or column of a table, that holds the text.",
        min_length=1,
        max_length=100,
    )
    tokens: int = preset_field(
        SHIPPED.tokens,
        "Training tokens to use, at most; the text may hold fewer.",
        ge=1,
        le=1_000_000_000_000,
    )
    sequence_length: int = Field(default=1024, description="Tokens per sequence.", ge=16, le=131_072)
    start_positions: StartPositions = Field(
        default_factory=StartPositions, description="The positions that training's sequences start at."
    )
    held_out_tokens: int = Field(
        default=500_000,
        description="Tokens of held-out documents, at most, that perplexity is measured on.",
        ge=1,
        le=1_000_000_000,
    )
    held_out_percent: int = Field(
        default=2, description="Share of documents held out, chosen by the hash of their text.", ge=1, le=50
    )


class CredentialsKeys(Camel):
    """Which keys of a Secret hold an access key: for Secrets that other programs have made."""

    access_key: SecretKey = Field(
        default="accessKey",
        description="Key within the Secret that holds the access key's id, such as AWS_ACCESS_KEY_ID.",
    )
    secret_key: SecretKey = Field(
        default="secretKey",
        description="Key within the Secret that holds the secret access key, such as AWS_SECRET_ACCESS_KEY.",
    )
    session_token: SecretKey = Field(
        default="sessionToken",
        description=(
            "Key within the Secret that holds the session token of temporary credentials, such as "
            "AWS_SESSION_TOKEN; the Secret need not have it."
        ),
    )


class CredentialsSecretRef(SecretRef):
    """A Secret with an access key, in the Trenchcoat's own namespace."""

    keys: CredentialsKeys = Field(
        default_factory=CredentialsKeys,
        description="Keys within the Secret, where they are not accessKey, secretKey and sessionToken.",
    )


class WebIdentity(Camel):
    """Keys for a short while, which the store's STS gives for the token of a ServiceAccount."""

    service_account_name: Name = Field(
        description=(
            "ServiceAccount in the Trenchcoat's namespace whose token is shown. Stages run as it, unless "
            "spec.pods says otherwise; the operator may ask for its token where the chart's "
            "rbac.serviceAccountNames lists it."
        )
    )
    audience: Audience = Field(
        default="sts.amazonaws.com", description="Audience of the token, as the store was told to expect it."
    )
    role_arn: RoleArn | None = Field(
        default=None, description="Role to take on; none where the token's claims decide, as MinIO can do."
    )
    sts_endpoint: Endpoint | None = Field(
        default=None,
        description=(
            "URL of the STS; that of the store by default, as MinIO and Ceph have it. Of AWS it is "
            "https://sts.REGION.amazonaws.com."
        ),
    )


class Store(Camel):
    """The S3 store that holds activations, shards, checkpoints and results."""

    rules = (
        *(
            Rule(
                cel=f"self.{field} == oldSelf.{field}",
                holds=None,
                message=f"{field} cannot change, for the artifacts would be lost: make a new Trenchcoat",
                field=field,
            )
            for field in ("endpoint", "bucket", "prefix")
        ),
        Rule(
            cel="has(self.credentialsSecretRef) != has(self.webIdentity)",
            holds=lambda store: (store.credentials_secret_ref is None) != (store.web_identity is None),
            message="one of two is needed: name credentialsSecretRef, a Secret with keys, or webIdentity",
            field="credentialsSecretRef",
        ),
    )

    endpoint: Endpoint = Field(description="URL of the S3 endpoint, such as https://minio.example:9000.")
    bucket: Bucket = Field(description="An existing bucket.")
    prefix: Prefix = Field(
        default="trenchcoat", description="Everything Trenchcoat writes stands below this prefix."
    )
    region: Region = Field(default="us-east-1", description="Region of the bucket.")
    credentials_secret_ref: CredentialsSecretRef | None = Field(
        default=None,
        description=(
            "Secret with the keys accessKey and secretKey, and sessionToken where the access key is a "
            "temporary one, in the Trenchcoat's namespace."
        ),
    )
    web_identity: WebIdentity | None = Field(
        default=None, description="In place of a Secret: the token of a ServiceAccount."
    )
    ca_bundle: CaBundle | None = Field(
        default=None,
        description=(
            "Certificates in PEM that the store's own may be signed by, beside those that the images trust."
        ),
    )
