"""Where artifacts stand: an S3 bucket, or a folder that looks like one."""

from trenchcoat_trainer.store.base import Entry, Readable, Store
from trenchcoat_trainer.store.folder import FolderStore
from trenchcoat_trainer.store.opening import open_store
from trenchcoat_trainer.store.s3 import S3Store

__all__ = ["Entry", "FolderStore", "Readable", "S3Store", "Store", "open_store"]
