"""Where the shard artifact keeps what, relative to its folder; without torch."""

from trenchcoat_api.crias import CriaRange

EMBEDDINGS = "rest/embeddings.safetensors"
HEAD = "rest/head.safetensors"
TEACHER = "teacher/"


def layer_path(cria: CriaRange, layer: int) -> str:
    """Object of one decoder layer's weights, relative to the shard artifact."""
    return f"cria-{cria.index:02d}/layer-{layer:03d}.safetensors"
