"""Names and labels of children; deterministic, so that making one twice makes it once."""

import hashlib
import json
from typing import Any

from trenchcoat_api import constants
from trenchcoat_api.artifacts import Artifact
from trenchcoat_api.resource import Trenchcoat


def child_name(trenchcoat: str, artifact: Artifact, attempt: int) -> str:
    """NAME-STAGE[-NN]-KEY8-ATTEMPT: short enough for its pods' names to stay within 63 characters."""
    return f"{trenchcoat}-{artifact.name}-{artifact.key[:8]}-{attempt}"


def digest(document: Any) -> str:
    """Eight hex digits that change whenever the document does."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def labels(trenchcoat: Trenchcoat, artifact: Artifact | None = None) -> dict[str, str]:
    """Labels by which one list finds the children of a Trenchcoat."""
    result = {
        constants.LABEL_MANAGED_BY: constants.MANAGED_BY,
        constants.LABEL_NAME: trenchcoat.metadata.name,
    }
    if artifact is not None:
        result[constants.LABEL_STAGE] = artifact.stage.value
        if artifact.cria is not None:
            result[constants.LABEL_CRIA] = str(artifact.cria.index)
    return result


def metadata(trenchcoat: Trenchcoat, name: str, artifact: Artifact | None = None) -> dict[str, Any]:
    """Metadata of a child: it goes when the Trenchcoat goes."""
    return {
        "name": name,
        "namespace": trenchcoat.metadata.namespace,
        "labels": labels(trenchcoat, artifact),
        "ownerReferences": [
            {
                "apiVersion": constants.API_VERSION,
                "kind": constants.KIND,
                "name": trenchcoat.metadata.name,
                "uid": trenchcoat.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
