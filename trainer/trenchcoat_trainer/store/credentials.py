"""Keys and tokens from the environment, and keeping them out of what is said."""

import logging
import os
import re

from trenchcoat_api.constants import (
    ENV_HF_DATA_TOKEN,
    ENV_HF_EXPORT_TOKEN,
    ENV_HF_TOKEN,
    ENV_MLFLOW_PASSWORD,
    ENV_MLFLOW_TOKEN,
    ENV_SECRET_KEY,
    ENV_SESSION_TOKEN,
    ENV_TRACKIO_TOKEN,
)

from trenchcoat_trainer.errors import BadInputError

_SECRET = (
    ENV_SECRET_KEY,
    ENV_SESSION_TOKEN,
    ENV_HF_TOKEN,
    ENV_HF_DATA_TOKEN,
    ENV_HF_EXPORT_TOKEN,
    ENV_MLFLOW_TOKEN,
    ENV_MLFLOW_PASSWORD,
    ENV_TRACKIO_TOKEN,
)
"""An access key's own name is no secret, and may be a word that messages have anyway."""
_SHORTEST = 4
"""What is shorter stands in messages by chance."""
_HEADERS = re.compile(
    r"(AWS4-HMAC-SHA256 )[^'\"]*|((?:X-Amz-)?(?:Signature|Credential|Security-Token)=)[^&\s'\",]*"
    r"|(Bearer )[^\s'\",]+|(hf_)[A-Za-z0-9]{16,}|(WebIdentityToken=)[^&\s'\",]*|(://)[^/\s'\"@]+(?=@)"
)


def read_secret(variable: str) -> str | None:
    """The secret in a variable, less blanks and line breaks around it, which files and shells add; or none.

    Raises:
        BadInputError: it has a character that no key or token has, so that no request could be made with it.
    """
    value = os.environ.get(variable, "").strip()
    # A secret key goes into no header: signatures are made of it.
    if variable != ENV_SECRET_KEY and not all("!" <= character <= "~" for character in value):
        raise BadInputError(
            f"{variable} holds a blank, a line break or another character that no key or token has: put the "
            "bare value into its Secret"
        )
    return value or None


def redact(text: str) -> str:
    """The text with stars for every secret of the environment, and for what proves one to a server."""
    for variable in _SECRET:
        raw = os.environ.get(variable, "")
        # As libraries quote it, too: a line break becomes a backslash and a letter.
        for form in (raw, repr(raw)[1:-1], raw.strip()):
            if len(form.strip()) >= _SHORTEST:
                text = text.replace(form, "***")
    return _HEADERS.sub(lambda match: "".join(part or "" for part in match.groups()) + "***", text)


class RedactingFormatter(logging.Formatter):
    """A line of the log, or a traceback, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """As the base class, redacted."""
        return redact(super().format(record))
