"""The teacher's tokenizer, as the shard stage stored it."""

import tempfile
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trenchcoat_trainer.checkpoints.shards import TEACHER, teacher_files
from trenchcoat_trainer.runtime.inputs import Inputs


def stored_tokenizer(inputs: Inputs) -> PreTrainedTokenizerBase:
    """Load the tokenizer that stands beside the shards; the tokenize stage has found that it can be used.

    Raises:
        MissingInputError: the shard stage is not complete.
    """
    with tempfile.TemporaryDirectory() as folder:
        for path in teacher_files(inputs):
            file = Path(folder, path.removeprefix(TEACHER))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(inputs.read_object(inputs.artifacts.shard, path))
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    return tokenizer
