"""Strings of the spec that must have a certain form, each with what to write when it has not."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from trenchcoat_api.rules import Text, matches

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"

DECIMAL_PATTERN = r"[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?"


def _decimal_to_string(value: object) -> object:
    # A convenience of `trenchcoat run` only: the API server wants the string itself.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


_Decimal = Annotated[str, BeforeValidator(_decimal_to_string), Field(max_length=32)]

Decimal = Annotated[
    _Decimal, Text(DECIMAL_PATTERN, 'write a number of at least 0 as a string, such as "0.5"')
]
"""A non-negative decimal number written as a string, such as "1e-2"; read it with float()."""

PositiveDecimal = Annotated[
    _Decimal,
    Text(
        DECIMAL_PATTERN,
        'write a number greater than 0 as a string, such as "1e-4"',
        cel="double(self) > 0.0",
        holds=lambda text: float(text) > 0,
    ),
]
"""A Decimal that is not 0."""

Share = Annotated[
    _Decimal,
    Text(
        DECIMAL_PATTERN,
        'write a number from 0 to less than 1 as a string, such as "0.05"',
        cel="double(self) < 1.0",
        holds=lambda text: float(text) < 1,
    ),
]
"""A Decimal below 1."""

PositiveShare = Annotated[
    _Decimal,
    Text(
        DECIMAL_PATTERN,
        'write a number greater than 0 and less than 1 as a string, such as "0.25"',
        cel="double(self) > 0.0 && double(self) < 1.0",
        holds=lambda text: 0 < float(text) < 1,
    ),
]
"""A Share that is not 0."""

Name = Annotated[
    str,
    Field(min_length=1, max_length=253),
    Text(
        rf"{_LABEL}(\.{_LABEL})*",
        "write the name of a Kubernetes object: lowercase letters, digits, - and . within",
    ),
]
"""Name of a Kubernetes object."""

Label = Annotated[
    str,
    Field(min_length=1, max_length=63),
    Text(_LABEL, "write lowercase letters, digits and - within, 63 characters at most"),
]
"""Name of a Kubernetes object that is also a DNS label."""

SecretKey = Annotated[
    str,
    Field(min_length=1, max_length=253),
    Text(r"[-._a-zA-Z0-9]+", "write a key of the Secret: letters, digits, -, _ and ."),
]

_PATH = "[^ ]+( +[^ ]+)*"
"""May have blanks within: people's folders do."""

ModelSource = Annotated[
    str,
    Field(max_length=1024),
    Text(
        rf"hf://[^/ ]+/[^/ ]+|s3://[^/ ]+/{_PATH}|file:///{_PATH}",
        "write hf://OWNER/NAME, s3://BUCKET/PREFIX or file:///FOLDER",
    ),
]

HubRepository = Annotated[
    str,
    Field(max_length=200),
    Text(r"hf://[A-Za-z0-9][-A-Za-z0-9._]*/[A-Za-z0-9][-A-Za-z0-9._]*", "write hf://OWNER/NAME"),
]

_NO_TEXT = (".arrow", ".csv", ".tsv", ".bz2", ".xz", ".zip", ".tar")

FileSource = Annotated[
    str,
    Field(max_length=1024),
    Text(rf"s3://[^/ ]+/{_PATH}|file:///{_PATH}", "write s3://BUCKET/PATH or file:///PATH"),
]

TaskName = Annotated[
    str,
    Field(min_length=1, max_length=100),
    Text(r"[A-Za-z0-9_.-]+", "write a task's name as its file has it: letters, digits, -, _ and ."),
]

DataSource = Annotated[
    str,
    Field(max_length=1024),
    Text(
        rf"hf://datasets/[^/ ]+/[^/ ]+|s3://[^/ ]+/{_PATH}|file:///{_PATH}",
        "write s3://BUCKET/GLOB, file:///GLOB or hf://datasets/OWNER/NAME",
    ),
    Text(
        "",
        "text is read from .parquet, .jsonl (also .ndjson or .json) and .txt, the latter perhaps compressed "
        "with .gz or .zst: convert the files",
        cel=" && ".join(f"!self.endsWith('{ending}')" for ending in _NO_TEXT),
        holds=lambda text: not text.endswith(_NO_TEXT),
    ),
]

_PORT = "6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}"

Endpoint = Annotated[
    str,
    Field(max_length=300),
    Text(
        rf"https?://([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:({_PORT}))?/?",
        "write http:// or https://, the host (an IPv6 address in brackets) and perhaps :PORT, and neither a "
        "path nor credentials, as in https://minio.example:9000",
        shown=False,
    ),
]

TrackingServer = Annotated[
    str,
    Field(max_length=1000),
    Text(
        rf"https?://([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:({_PORT}))?(/[A-Za-z0-9._~/-]*)?",
        "write http:// or https://, the host, perhaps :PORT and a path, and no credentials, as in "
        "https://mlflow.example:5000",
        shown=False,
    ),
]

Audience = Annotated[
    str,
    Field(min_length=1, max_length=253),
    Text(r"[!-~]+", "write the audience without blanks, such as sts.amazonaws.com"),
]

RoleArn = Annotated[
    str,
    Field(min_length=1, max_length=2048),
    Text(r"arn:[!-~]+", "write a role such as arn:aws:iam::123456789012:role/NAME"),
]

CaBundle = Annotated[
    str,
    Field(max_length=65_536),
    Text(
        r"\s*-----BEGIN CERTIFICATE-----[-A-Za-z0-9+/=\s]*-----END CERTIFICATE-----\s*",
        "write certificates in PEM, each from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----, and "
        "nothing else; a private key never",
        cel="!self.contains('PRIVATE')",
        holds=lambda text: "PRIVATE" not in text,
        shown=False,
    ),
]

Bucket = Annotated[
    str,
    Field(min_length=3, max_length=63),
    Text(rf"{_LABEL}(\.{_LABEL})*", "write an S3 bucket's name: lowercase letters, digits, - and . within"),
]

Prefix = Annotated[
    str,
    Field(max_length=200),
    Text(
        r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*",
        "write one or more names of letters, digits, -, _ and . with / between them; "
        "none begins with a dot, and there is no / at either end",
    ),
]

Region = Annotated[
    str,
    Field(min_length=1, max_length=50),
    Text(r"[A-Za-z0-9-]+", "write a region of letters, digits and -, such as us-east-1"),
]

Cpu = Annotated[
    str,
    Field(max_length=32),
    Text(r"[0-9]+m|[0-9]+(\.[0-9]{1,3})?", "write CPU cores, such as 500m or 8"),
]

Bytes = Annotated[
    str,
    Field(max_length=32),
    Text(
        r"[0-9]+(\.[0-9]+)?([KMGTP]i|[kMGTP])?",
        "write bytes as Kubernetes does, such as 512Mi or 64Gi",
    ),
]

ImageName = Annotated[
    str,
    Field(max_length=500),
    Text(
        r"[a-zA-Z0-9][-a-zA-Z0-9._]*(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
        r"(:[A-Za-z0-9_][-A-Za-z0-9._]*)?(@sha256:[0-9a-f]{64})?",
        "write REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@sha256:DIGEST, without a scheme",
    ),
]

ExtendedResource = Annotated[
    str,
    Field(max_length=253),
    Text(
        rf"{_LABEL}(\.{_LABEL})*/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?",
        "write an extended resource with its domain, such as nvidia.com/gpu",
    ),
]

FurtherResource = Annotated[
    str,
    Field(max_length=253),
    Text(
        r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?|hugepages-[0-9]+[KMG]i",
        "write a resource such as rdma/hca or hugepages-2Mi",
    ),
]


def where_decimals(cel: str, *operands: str) -> str:
    """A condition in CEL on operands as numbers; of those that are none, their own rules tell."""
    return f"!({' && '.join(matches(name, DECIMAL_PATTERN) for name in operands)}) || {cel}"
