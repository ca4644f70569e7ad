"""What a manifest refers to: checksums that the store computed, and lists that stand outside it."""

from pydantic import Field

from trenchcoat_api.base import Camel


class StoreChecksum(Camel):
    """Checksum of an object that the S3 store put together on its own side, so that nobody here read it.

    The store computed it as it copied: the MD5 of the MD5s of all parts, with their number, S3's ETag of a
    multipart upload. Whoever knows the parts' sizes can compute it from the content.
    """

    etag: str = Field(description="Hex digits, a dash and the number of parts.")
    part_sizes: list[int] = Field(description="Bytes of every part, in order.", min_length=1)


class ObjectList(Camel):
    """A list of objects that stands outside the manifest: a stored object in JSON on every line."""

    path: str = Field(description="Key of the list, relative to the artifact's folder.")
    sha256: str = Field(description="Checksum of the list, in hex.")
    first: str = Field(description="Path of its first object.")
    count: int = Field(description="Objects in it.", ge=1)
    size: int = Field(description="Bytes of its objects together.", ge=0)
