"""The teacher's checkpoint as the user has it: its files, its configuration and its tensors."""

from __future__ import annotations

import codecs
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.errors import BadInputError, NotFoundError
from trenchcoat_trainer.store import Readable, Store
from trenchcoat_trainer.store.places import open_place
from trenchcoat_trainer.tensors.headers import TensorRange, read_header

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig

logger = logging.getLogger(__name__)

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
KEPT_FILES = (
    CONFIG,
    "generation_config.json",
    *TOKENIZER_FILES,
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "USE_POLICY.md",
)
"""What an exported student needs beside its weights, where it is there."""
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"
_MATRICES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
BUFFER = "rotary_emb.inv_freq"
"""Ends the names of tensors that older checkpoints hold and nobody reads."""
WEIGHT_TYPES = ("F16", "BF16", "F32", "F64")
_NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one of the teacher's tensors stands."""

    file: str
    place: TensorRange


@dataclass(frozen=True)
class Teacher:
    """A checkpoint in Hugging Face's layout, never loaded as a whole."""

    source: str
    """As spec.model.source says."""
    store: Readable
    prefix: str
    """Of the checkpoint's folder within the store; empty, or ending in a slash."""

    @cached_property
    def files(self) -> dict[str, int]:
        """Sizes of the files directly in the folder, by name."""
        start = len(self.prefix)
        entries = {entry.path[start:]: entry.size for entry in self.store.list(self.prefix)}
        return {name: size for name, size in entries.items() if "/" not in name}

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The configuration as config.json has it.

        Raises:
            BadInputError: it is missing, unreadable or not that of a plain Llama.
        """
        fields = self._json(CONFIG)
        kind = fields.get("model_type")
        if kind != "llama":
            raise BadInputError(
                f"spec.model.source {self.source} is a model of type {kind!r}: only Llama models "
                "(model_type 'llama' in config.json) can be linearized"
            )
        for name in ("quantization_config", "compression_config"):
            if settings := fields.get(name):
                method = settings.get("quant_method") if isinstance(settings, dict) else None
                raise BadInputError(
                    f"spec.model.source {self.source} is quantized ({method or name}): name the checkpoint "
                    "with 16- or 32-bit weights that it was made of"
                )
        return fields

    @cached_property
    def config(self) -> LlamaConfig:
        """The configuration, with defaults for what config.json leaves out.

        Raises:
            BadInputError: a field has a value that no Llama can have.
        """
        return llama_config(self.fields, f"{CONFIG} of {self.source}")

    @cached_property
    def tensor_files(self) -> dict[str, str]:
        """The file that holds each tensor, by the tensor's name.

        Raises:
            BadInputError: there are no safetensors files, the index is none, or names one that is missing.
        """
        if SINGLE in self.files:
            if INDEX in self.files:
                logger.warning(
                    "%s has %s beside %s: it alone is read, as transformers does; delete the one not meant",
                    self.source, SINGLE, INDEX,
                )  # fmt: skip
            return dict.fromkeys(self._header(SINGLE), SINGLE)
        if INDEX in self.files:
            named = self._json(INDEX).get("weight_map")
            if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
                raise BadInputError(
                    f"{INDEX} of {self.source} has no weight_map that names a file for every tensor: save "
                    "the checkpoint anew"
                )
            for file in sorted(set(named.values())):
                if file not in self.files:
                    raise BadInputError(
                        f"spec.model.source {self.source} lacks {file}, which {INDEX} names: "
                        "complete the checkpoint"
                    )
            return named
        raise BadInputError(f"spec.model.source {self.source} {_what_else(self.files)}")

    @property
    def layers(self) -> int:
        """Number of decoder layers.

        Raises:
            BadInputError: config.json does not say.
        """
        layers = self.fields.get("num_hidden_layers")
        if not isinstance(layers, int) or layers < 1:
            raise BadInputError(f"{CONFIG} of {self.source} has no num_hidden_layers: correct it")
        return layers

    def find(self, name: str) -> StoredTensor:
        """Where a tensor stands.

        Raises:
            BadInputError: the checkpoint has no such tensor.
        """
        file = self.tensor_files.get(name)
        place = self._header(file).get(name) if file is not None else None
        if file is None or place is None:
            raise BadInputError(
                f"spec.model.source {self.source} lacks the tensor {name}: complete the checkpoint"
            )
        return StoredTensor(file, place)

    def read_tensor(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """One tensor on the CPU, converted to `dtype`; only its own bytes are read.

        Raises:
            BadInputError: it is missing or cut short.
        """
        import torch

        from trenchcoat_trainer.tensors.serialization import DTYPES, byte_view

        stored = self.find(name)
        tensor = torch.empty(stored.place.shape, dtype=DTYPES[stored.place.dtype])
        target, done = byte_view(tensor), 0
        for chunk in self.store.stream(self.prefix + stored.file, stored.place.offset, stored.place.length):
            target[done : done + len(chunk)] = chunk
            done += len(chunk)
        if done != stored.place.length:
            raise BadInputError(f"{stored.file} of {self.source} is cut short: complete the checkpoint")
        return tensor.to(dtype)

    def layer_names(self, layer: int) -> list[str]:
        """Names of a decoder layer's tensors, in the order of the checkpoint's own names.

        Raises:
            BadInputError: one that every Llama has is missing.
        """
        start = f"model.layers.{layer}."
        for part in (*_MATRICES, *_NORMS):
            if f"{start}{part}.weight" not in self.tensor_files:
                self.find(f"{start}{part}.weight")
        wanted = (name for name in self.tensor_files if name.startswith(start))
        return sorted(name for name in wanted if not name.endswith(BUFFER))

    def head_names(self) -> list[str]:
        """Names of the final norm and, unless it is tied to the embedding, the head."""
        return [NORM] if self.fields.get("tie_word_embeddings") else [NORM, HEAD]

    def check_files(self) -> None:
        """Find out whether every JSON file can be read, as transformers reads it.

        Raises:
            BadInputError: one is empty, or begins with a byte-order mark.
        """
        for name in self.files:
            if not name.endswith(".json") or name not in (*KEPT_FILES, INDEX):
                continue
            try:
                start = self.store.read(self.prefix + name, 0, len(codecs.BOM_UTF8))
            except NotFoundError:
                continue  # a link that leads nowhere, which is told where the file is needed
            if not start:
                raise BadInputError(f"{name} of {self.source} is empty: fetch or save it anew")
            if start == codecs.BOM_UTF8:
                raise BadInputError(
                    f"{name} of {self.source} begins with a byte-order mark, which transformers does not "
                    "read: write it without one"
                )

    def check(self) -> None:
        """Find out from the configuration, the index and the headers whether the checkpoint is complete.

        Raises:
            BadInputError: it is not, or a file is damaged; the message says what is missing.
        """
        for layer in range(self.layers):
            self.layer_names(layer)
        for name in (EMBEDDING, *self.head_names()):
            self.find(name)
        for name in self.tensor_files:
            stored = self.find(name)
            if stored.place.dtype not in WEIGHT_TYPES and not name.endswith(BUFFER):
                raise BadInputError(
                    f"tensor {name} of {self.source} has the type {stored.place.dtype}: name the checkpoint "
                    "with 16- or 32-bit weights"
                )

    def facts(self) -> ModelFacts:
        """Sizes of the model."""
        return model_facts(self.config)

    def _json(self, name: str) -> dict[str, Any]:
        if name not in self.files:
            raise BadInputError(
                f"spec.model.source {self.source} has no {name}: name a checkpoint in Hugging Face's layout"
            )
        try:
            value = json.loads(self.store.read(self.prefix + name))
        except NotFoundError as error:
            raise BadInputError(
                f"{name} of {self.source} cannot be opened, though it is listed (a link to nowhere?): "
                "put the file there"
            ) from error
        except (ValueError, RecursionError) as error:
            raise BadInputError(f"{name} of {self.source} is not JSON ({error}): correct it") from error
        if not isinstance(value, dict):
            raise BadInputError(f"{name} of {self.source} holds no JSON object: correct it")
        return value

    @cached_property
    def _headers(self) -> dict[str, dict[str, TensorRange]]:
        return {}

    def _header(self, file: str) -> dict[str, TensorRange]:
        if file not in self._headers:
            try:
                self._headers[file] = read_header(self.store, self.prefix + file, self.files[file])
            except (ValueError, NotFoundError) as error:
                raise BadInputError(
                    f"{file} of {self.source} is no whole safetensors file ({error}): fetch or save it anew"
                ) from error
        return self._headers[file]


def open_teacher(spec: TrenchcoatSpec, store: Store) -> Teacher:
    """The checkpoint that spec.model.source names; `store` is that of spec.store, for s3:// sources.

    Raises:
        BadInputError: there is none.
        StoreError: its store cannot be used.
    """
    source = spec.model.source
    if source.startswith("hf://"):
        from trenchcoat_trainer.store.hub import HubRepository

        place: Readable = HubRepository(source.removeprefix("hf://"), spec.model.revision)
        prefix = ""
    else:
        place, folder = open_place("spec.model.source", source, store)
        prefix = folder.rstrip("/") + "/"
    teacher = Teacher(source, place, prefix)
    if not teacher.files:
        raise BadInputError(
            f"spec.model.source {source} holds no files: correct it, or put the checkpoint there"
        )
    return teacher


def llama_config(fields: dict[str, Any], name: str) -> LlamaConfig:
    """A Llama's configuration from what config.json holds; `name` is how messages call that.

    Raises:
        BadInputError: a field has a value that no Llama can have.
    """
    from transformers import LlamaConfig

    try:
        config = LlamaConfig.from_dict(fields)
    except Exception as error:  # the library's checks raise of every kind
        raise BadInputError(
            f"{name} cannot be that of a Llama ({' '.join(str(error).split())}): correct it"
        ) from error
    if not isinstance(config, LlamaConfig):
        raise TypeError("LlamaConfig.from_dict returned a tuple")
    return config


def _what_else(files: Iterable[str]) -> str:
    """Why there are no weights to read among these files, and the remedy."""
    if any(name.endswith((".bin", ".pt", ".pth")) for name in files):
        return (
            "has its weights in pickle files only, which are never opened because they may run code: convert "
            "it to safetensors (save_pretrained does)"
        )
    if any(name.lower().endswith(".gguf") for name in files):
        return "has its weights in GGUF only, which is not read: name the checkpoint that it was made of"
    return f"has no {SINGLE} and no {INDEX}: name a checkpoint"


def head_dim(config: LlamaConfig) -> int:
    """Width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def model_facts(config: LlamaConfig) -> ModelFacts:
    """Sizes of a Llama, from its configuration alone."""
    return ModelFacts(
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=head_dim(config),
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        parameters=count_parameters(config),
    )


def count_parameters(config: LlamaConfig) -> int:
    """Parameters of a Llama, tied ones counted once."""
    hidden, mlp = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * head_dim(config)
    keys = (config.num_key_value_heads or config.num_attention_heads) * head_dim(config)
    layer = hidden * (2 * queries + 2 * keys + 3 * mlp + 2)
    if config.attention_bias:
        layer += queries + 2 * keys + hidden
    if config.mlp_bias:
        layer += 2 * mlp + hidden
    embeddings = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    return config.num_hidden_layers * layer + embeddings + hidden
