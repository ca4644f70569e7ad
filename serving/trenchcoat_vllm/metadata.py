"""What one step of the engine asks of every student layer: whose states, and which tokens are new."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import AttentionBackend, AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.attention.backends.utils import mamba_get_block_table_tensor, split_decodes_and_prefills
from vllm.v1.kv_cache_interface import KVCacheSpec


class Chunk(NamedTuple):
    """Consecutive tokens of one sequence.

    Attributes:
        page: which page of the pool holds the sequence's state, [1].
        tokens: where its new tokens stand among those of the step.
        seen: how many tokens of the sequence the state has seen.
    """

    page: torch.Tensor
    tokens: slice
    seen: int


@dataclass(frozen=True)
class StudentStep:
    """One step of the engine: first N sequences with one new token each, then chunks of others.

    Attributes:
        pages_N: pages of the pool that hold the states of the N.
        seen_N: how many tokens each of the N has seen before.
        seen: the same numbers on the host.
        fresh: those of `pages_N` whose sequence begins with this token; None where none does.
        chunks: the others.
    """

    pages_N: torch.Tensor
    seen_N: torch.Tensor
    seen: tuple[int, ...]
    fresh: torch.Tensor | None
    chunks: tuple[Chunk, ...]
    _found: dict[Hashable, torch.Tensor | None] = field(default_factory=dict)

    def whose(self, name: Hashable, is_so: Callable[[int], bool]) -> torch.Tensor | None:
        """Return the pages of those of the N of whose `seen` something is so; None where there are none.

        Layers that ask by the same name share one answer.
        """
        if name not in self._found:
            rows = [row for row, seen in enumerate(self.seen) if is_so(seen)]
            self._found[name] = self.pages_N[rows] if rows else None
        return self._found[name]


class StudentStepBuilder(AttentionMetadataBuilder[StudentStep]):
    """Makes a `StudentStep` of what vLLM says of the batch.

    CUDA graphs of whole steps stay off: how many sequences begin differs from step to step.
    """

    reorder_batch_threshold: int | None = 1

    def __init__(
        self,
        kv_cache_spec: KVCacheSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
        **_: Any,
    ) -> StudentStep:
        """Return the step; `common_prefix_len` and `fast_build` do not matter to it."""
        batch = common_attn_metadata
        mode = self.vllm_config.cache_config.mamba_cache_mode
        pages = mamba_get_block_table_tensor(
            batch.block_table_tensor, batch.seq_lens, self.kv_cache_spec, mode
        )
        pages_B = pages[:, 0].long()
        ones = split_decodes_and_prefills(batch, decode_threshold=1)[0]
        # Exact where nothing is speculative: on the host, so that no step waits for the device.
        starts, lengths = batch.query_start_loc_cpu.tolist(), batch.seq_lens_cpu_upper_bound.tolist()
        seen = [max(lengths[row] - (starts[row + 1] - starts[row]), 0) for row in range(batch.num_reqs)]
        fresh = [row for row in range(ones) if not seen[row]]
        chunks = (
            Chunk(pages_B[row : row + 1], slice(starts[row], starts[row + 1]), seen[row])
            for row in range(ones, batch.num_reqs)
        )
        return StudentStep(
            pages_N=pages_B[:ones],
            seen=tuple(seen[:ones]),
            seen_N=(batch.seq_lens[:ones].long() - 1).clamp_min(0),
            fresh=pages_B[fresh] if fresh else None,
            chunks=tuple(chunk for chunk in chunks if chunk.tokens.stop > chunk.tokens.start),
        )


class StudentBackend(AttentionBackend):
    """By this name vLLM finds the builder."""

    @staticmethod
    def get_name() -> str:
        """Return the name that logs tell."""
        return "TRENCHCOAT"

    @staticmethod
    def get_impl_cls() -> Any:
        """There is none: the layer computes by itself."""
        raise NotImplementedError("a student's layer computes its attention by itself")

    @staticmethod
    def get_builder_cls() -> type[StudentStepBuilder]:
        """Return what makes a step's metadata."""
        return StudentStepBuilder

    @classmethod
    def is_ssm(cls) -> bool:
        """Whether a sequence has one state of constant size in place of pages that grow: yes."""
        return True
