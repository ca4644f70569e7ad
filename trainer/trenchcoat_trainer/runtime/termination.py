"""What a stage says last: one line in the termination log, which Kubernetes shows in the pod's status."""

import fcntl
import logging
import os
from pathlib import Path

from trenchcoat_trainer.store.credentials import redact

logger = logging.getLogger(__name__)

ENV_TERMINATION_LOG = "TRENCHCOAT_TERMINATION_LOG"
"""File for the sentence that a stage ends with, in place of /dev/termination-log."""
DEFAULT_TERMINATION_LOG = Path("/dev/termination-log")
# Kubernetes keeps this much of the file.
TERMINATION_LOG_BYTES = 4096


def write_termination_log(message: str) -> None:
    """Leave the message, in one line, unless another process of the same pod has left one.

    What fails first explains the others: they lose their connection to it, or are told to stop.
    """
    named = os.environ.get(ENV_TERMINATION_LOG)
    file = Path(named) if named else DEFAULT_TERMINATION_LOG
    if not named and not file.exists():
        return
    line = " ".join(redact(message).split()).encode()[:TERMINATION_LOG_BYTES]
    try:
        with file.open("ab") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            if os.fstat(log.fileno()).st_size == 0:
                log.write(line)
    except OSError as error:
        logger.warning("the termination log %s cannot be written: %s", file, error)
