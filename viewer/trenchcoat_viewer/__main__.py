"""The viewer's program: `python -m trenchcoat_viewer`."""

import logging
import os
import ssl
import sys
from pathlib import Path

from aiohttp import web
from trenchcoat_api.environment import SettingsError
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.errors import NoClusterError

from trenchcoat_viewer.access import Access
from trenchcoat_viewer.runs import Runs
from trenchcoat_viewer.server import Viewer
from trenchcoat_viewer.settings import Settings


def main() -> int:
    """Serve until SIGTERM, and return the exit code."""
    try:
        _serve(Settings.from_environment(os.environ))
    except (SettingsError, NoClusterError) as error:
        sys.stderr.write(f"trenchcoat-viewer: {error}\n")
        return 2
    return 0


def _serve(settings: Settings) -> None:
    secured = _tls(settings.tls_folder)
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    cluster = Cluster.connect()
    runs = Runs(cluster, settings.namespaces, settings.refresh_seconds)
    viewer = Viewer(runs, Access(cluster, settings.audiences))
    try:
        web.run_app(
            viewer.application(),
            port=settings.port,
            ssl_context=secured,
            access_log=None,  # whose page somebody looks at is nobody else's business
            shutdown_timeout=2.0,
            print=None,
        )
    except OSError as error:  # of listening: what a request meets is its own answer
        raise SettingsError(
            f"TRENCHCOAT_VIEWER_PORT is {settings.port}, which cannot be had ({error}): set another"
        ) from error
    finally:
        runs.stop()


def _tls(folder: str) -> ssl.SSLContext | None:
    if not folder:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(Path(folder) / "tls.crt", Path(folder) / "tls.key")
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"TRENCHCOAT_VIEWER_TLS_FOLDER is {folder!r}: tls.crt and tls.key there cannot be used ({error})"
        ) from error
    return context


if __name__ == "__main__":
    sys.exit(main())
