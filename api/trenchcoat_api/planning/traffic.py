"""Bytes that Jobs move from and to the store."""

from trenchcoat_api.phases import adapter_epochs
from trenchcoat_api.planning.evaluation import reads_of_trained, reads_of_weights, stored_states
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.sizes import embedding_parameters, layer_parameters
from trenchcoat_api.planning.storage import artifact_bytes, weight_bytes
from trenchcoat_api.planning.timing import cria_reads
from trenchcoat_api.spec import Objective
from trenchcoat_api.stages import Stage


def read_bytes(outline: Outline, stage: Stage) -> int:
    """What all Jobs of a stage read of artifacts and of the teacher's checkpoint; the text is left out."""
    weights, tokens = weight_bytes(outline), artifact_bytes(outline, Stage.TOKENIZE)
    crias = artifact_bytes(outline, Stage.CRIA)
    match stage:
        case Stage.COLLECT | Stage.SELECT:
            return weights + tokens
        case Stage.SHARD:
            return weights
        case Stage.CRIA:
            return sum(_cria(outline, len(cria.layers), cria.index) for cria in outline.crias)
        case Stage.STITCH:
            return weights + crias + outline.spec.stitch.epochs * tokens
        case Stage.ADAPT:
            return weights + adapter_epochs(outline.spec) * tokens
        case Stage.EVALUATE:
            states = len(outline.crias) * stored_states(outline)
            return reads_of_weights(outline) * weights + reads_of_trained(outline) * crias + states
        case Stage.EXPORT:
            return weights + crias + artifact_bytes(outline, Stage.STITCH)
        case _:
            return 0


def _cria(outline: Outline, layers: int, index: int) -> int:
    """Its shard, and hidden states in every epoch: the first has token ids in place of a boundary."""
    stored = outline.model.stored_bytes
    size = layers * layer_parameters(outline.facts) * stored
    states = int(cria_reads(outline))
    lora = outline.spec.cria_lora
    targets = lora.epochs * outline.boundary_bytes if lora.objective is Objective.BLOCK and states else 0
    if index == 0:
        size += embedding_parameters(outline.facts) * stored
        states = targets
    elif index == len(outline.crias) - 1:
        states -= targets
    return size + states


def job_bytes(outline: Outline, stage: Stage) -> int:
    """What the busiest Job of a stage reads and writes together."""
    if stage is not Stage.CRIA:
        return read_bytes(outline, stage) + artifact_bytes(outline, stage)
    last = len(outline.crias) - 1
    busiest = min(1, last)
    return _cria(outline, outline.longest_cria, busiest) + artifact_bytes(outline, stage) // (last + 1)
