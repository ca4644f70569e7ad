"""The teacher's tokenizer: loaded, and checked against the teacher's embedding."""

import tempfile
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trenchcoat_trainer.checkpoints.teacher import CONFIG, TOKENIZER_FILES, Teacher
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.sources.encoding import Encoder


class Tokenizer:
    """The teacher's tokenizer, for whole documents."""

    def __init__(self, teacher: Teacher) -> None:
        """Raises BadInputError when the teacher has none, or one that cannot be loaded."""
        self._source = teacher.source
        self._vocabulary = teacher.config.vocab_size
        if not {"tokenizer.json", "tokenizer.model"} & teacher.files.keys():
            raise BadInputError(
                f"spec.model.source {teacher.source} has no tokenizer (tokenizer.json): put it beside its "
                "weights"
            )
        self._tokenizer = _load_tokenizer(teacher)

    def encoder(self) -> Encoder:
        """What encodes documents, with the marks at their begin and end that the tokenizer has."""
        return Encoder(self._tokenizer.backend_tokenizer.to_str(), self._tokenizer.eos_token_id)

    def check(self, ids: list[np.ndarray]) -> None:
        """Raise BadInputError if an id has no row in the teacher's embedding."""
        highest = max((int(own.max()) for own in ids if len(own)), default=0)
        if highest >= self._vocabulary:
            raise BadInputError(
                f"the tokenizer of {self._source} makes the id {highest}, but its embedding has "
                f"{self._vocabulary} rows: the tokenizer belongs to another model"
            )


def _load_tokenizer(teacher: Teacher) -> PreTrainedTokenizerBase:
    with tempfile.TemporaryDirectory() as folder:
        for name in (CONFIG, *TOKENIZER_FILES):
            if name in teacher.files:
                teacher_file = teacher.store.read(teacher.prefix + name)
                Path(folder, name).write_bytes(teacher_file)
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the library raises whatever it meets, bare Exceptions among it
            raise BadInputError(
                f"the tokenizer of {teacher.source} cannot be loaded ({' '.join(str(error).split())}): give "
                "it a tokenizer.json that this version of the tokenizers library knows"
            ) from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise BadInputError(
            f"the tokenizer of {teacher.source} has no tokenizer.json and none can be made of it: convert it"
        )
    return tokenizer
