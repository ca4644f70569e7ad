"""Keys for a short while, which an STS gives for a token that says who asks (AssumeRoleWithWebIdentity)."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import urllib3
from minio.credentials.credentials import Credentials as Keys
from minio.credentials.providers import Provider, WebIdentityProvider

from trenchcoat_s3.connection import Patience, pool
from trenchcoat_s3.faults import IdentityError, root_cause

_STATUS = re.compile(r"status code (\d{3})$")


@dataclass(frozen=True, slots=True)
class WebIdentity:
    """Who asks which STS; equal to another that would be given the same keys."""

    sts_endpoint: str
    """URL of the STS: the store's own, with MinIO and Ceph."""
    role_arn: str | None
    """The role to take on; none where the token's claims alone decide."""
    subject: str
    """Whose token it is, for messages."""
    ca_bundle: str | None = field(repr=False)
    """Certificates in PEM that the STS's own may be signed by."""
    token: Callable[[], str] = field(compare=False, repr=False)
    """Reads or asks for a token, which lives for an hour or so; raises IdentityError where there is none."""

    def provider(self, patience: Patience) -> Provider:
        """The client's own form of it.

        Raises:
            UnusableProxyError: a variable names a proxy that is none.
            ssl.SSLError: the certificates are none.
        """
        return _Careful(self, pool(self.sts_endpoint, patience, self.ca_bundle))


class _Careful(Provider):
    """The library's provider, one caller at a time, with errors that do not quote the token.

    minio 7.2.20 sends the token in the URL, which its errors and those of the connection quote.
    """

    def __init__(self, identity: WebIdentity, http: urllib3.PoolManager) -> None:
        self._identity = identity
        self._lock = threading.Lock()
        self._library = WebIdentityProvider(
            jwt_provider_func=lambda: {"access_token": identity.token(), "expires_in": "0"},
            sts_endpoint=identity.sts_endpoint,
            role_arn=identity.role_arn,
            role_session_name="trenchcoat" if identity.role_arn else None,
            http_client=http,
        )

    def retrieve(self) -> Keys:
        """The keys, as long as they live; then others.

        Raises:
            IdentityError: the STS gives none.
        """
        with self._lock:
            try:
                return self._library.retrieve()
            except IdentityError:
                raise  # the token cannot be had
            except urllib3.exceptions.HTTPError as error:
                raise IdentityError(f"{self._name} cannot be reached ({root_cause(error)})") from None
            except (
                ValueError,
                SyntaxError,
            ) as error:  # the library's word for a refusal, and XML that is none
                status = _STATUS.search(str(error))
                said = f"refuses it (HTTP {status[1]})" if status else "does not answer as an STS does"
                raise IdentityError(
                    f"{self._name} was shown the token of {self._identity.subject} and {said}"
                ) from None

    @property
    def _name(self) -> str:
        return f"the STS at {self._identity.sts_endpoint}"
