"""LoLCATs' hybrid attention of a layer: its parameters, and decoding with a state of constant size.

An exported checkpoint carries this file as ``student_attention.py``, and beside it ``hybrid.py``, which
computes, ``stepping.py``, and for prompts on a GPU with Triton ``prompt_kernel.py``; they import torch alone.

Sequences of one batch may differ in length: blocks are counted from each one's first visible token.

Shape letters as in ``hybrid.py``; L live tokens of a state, X tokens of a state with those that are new.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .hybrid import (
    Folded,
    HybridInputs,
    accumulation_dtype,
    attend,
    fold,
    forward,
    one_query,
    put_back,
    take,
    visible_first,
)
from .stepping import FixedHybrid

INITIAL_WINDOW_FACTOR = -2.1972245773362196
"""Before the sigmoid: the window starts with a weight of 0.1."""

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""q [B, H, T, D], k and v [B, K, T, D] of one layer, q and k after RoPE."""
Parameters = Mapping[str, torch.Tensor]
"""The trainable tensors of one layer by name."""


@dataclass
class HybridState:
    """What decoding remembers of one layer: constant in size however many tokens have passed.

    Attributes:
        keys: live keys after RoPE, [B, K, L, D]: W to 2W - 1 of them once W tokens have passed, so that
            the next query sees W + 1 to 2W keys including its own.
        values: their values, [B, K, L, D].
        memory: the folded sum of phi_k v^T, [B, H, 2F, D], or [B, K, 2F, D] where query heads share their
            group's key map; None while nothing has left the terrace.
        normalizer: the folded sum of phi_k, [B, H or K, 2F], or None likewise.
        tokens: how many tokens have been seen, hidden ones included.
        live: where sequences differ in what is hidden, how many of the keys each one has, [B], on the CPU, so
            that no step waits for the device; None where none was hidden.
    """

    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    memory: torch.Tensor | None = None
    normalizer: torch.Tensor | None = None
    tokens: int = 0
    live: torch.Tensor | None = None

    @property
    def folded(self) -> Folded | None:
        """What has left the terrace; None while nothing has."""
        if self.memory is None or self.normalizer is None:
            return None
        return Folded(self.memory, self.normalizer)

    @property
    def batch_size(self) -> int:
        """How many sequences are remembered: 0 before the first token."""
        return 0 if self.keys is None else self.keys.shape[0]

    def reorder(self, rows: torch.Tensor) -> None:
        """Keep the batch rows named by `rows`, in that order (beam search)."""
        for name in ("keys", "values", "memory", "normalizer", "live"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor.index_select(0, rows.to(tensor.device)))


@dataclass(frozen=True)
class HybridAttention(FixedHybrid):
    """One layer's hybrid attention: its sizes, its trainable parameters, what it computes.

    Methods take `heads`, whose tokens are counted from the first visible one given, wherever its RoPE began,
    and `parameters`, which `shapes` names.  `visible`, bool [B, T], says which tokens are the sequence's own:
    the others (padding, at either end) are no keys and are not counted, and their output means nothing.

    Attributes:
        heads: H.
        kv_heads: K.
        key_maps: heads that have a key feature map of their own, H or K.
        head_dim: D.
        feature_dim: F.
        window_size: W.
    """

    heads: int
    kv_heads: int
    key_maps: int
    head_dim: int
    feature_dim: int
    window_size: int

    takes_padding = True
    """Whether `visible` may be given."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the trainable parameters by name; they are kept in fp32."""
        return {
            "w_q": (self.heads, self.head_dim, self.feature_dim),
            "w_k": (self.key_maps, self.head_dim, self.feature_dim),
            "window_factor": (self.heads,),
        }

    def initialize(
        self, name: str, tensor: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Fill `tensor`, the parameter called `name`, with its value before training; return it.

        Feature maps are uniform within sqrt(6 / (D F)), as in LoLCATs' implementation.
        """
        # By torch.nn.init, which transformers makes leave alone what it has loaded.
        if name == "window_factor":
            torch.nn.init.constant_(tensor, INITIAL_WINDOW_FACTOR)
        else:
            bound = (6 / (self.head_dim * self.feature_dim)) ** 0.5
            torch.nn.init.uniform_(tensor, -bound, bound, generator=generator)
        return tensor

    def inputs(self, heads: Heads, parameters: Parameters) -> HybridInputs:
        """Return what the attention is a function of; ValueError where shapes do not belong together."""
        maps = (parameters[name] for name in ("w_q", "w_k", "window_factor"))
        return HybridInputs(*heads, *maps, self.window_size).check()

    def attend(
        self,
        heads: Heads,
        parameters: Parameters,
        keep_parts: str = "both",
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the attention's output before o_proj, [B, H, T, D], in the dtype of q.

        Memory is linear in the number of tokens, and every input gets its gradient.  With `keep_parts`
        "window" or "linear" the other part's weights are dropped before normalising; a row with no weight
        left gives zeros.

        Raises:
            ValueError: shapes do not belong together, or `keep_parts` is unknown.
        """
        x = self.inputs(heads, parameters)
        if visible is None:
            return self.compute(x, keep_parts)
        order_BT = visible_first(visible)
        q, k, v = (take(tensor, order_BT) for tensor in x[:3])
        return put_back(self.compute(x._replace(q=q, k=k, v=v), keep_parts), order_BT)

    def compute(self, x: HybridInputs, keep_parts: str) -> torch.Tensor:
        """Compute `attend` of inputs that were checked, nothing of them hidden."""
        kernel = _kernel_for(x) if keep_parts == "both" else None
        return attend(x, keep_parts) if kernel is None else kernel.attend(x)[0]

    def new_state(self) -> HybridState:
        """Return what decoding remembers before the first token."""
        return HybridState()

    def decode(
        self,
        state: HybridState,
        heads: Heads,
        parameters: Parameters,
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend from the next token(s) and update `state`: the same as the full forward's last rows.

        Arguments and result are those of `attend`, with T the number of new tokens: 1 when generating, any
        number for a prompt.
        """
        x = self.inputs(heads, parameters)
        if visible is None and state.live is None:
            y = _decode_alike(x, state)
        else:
            y = _decode_ragged(x, state, visible)
        state.tokens += x.q.shape[2]
        return y

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Return the most bytes that decoding remembers of one sequence whose keys have `dtype`."""
        live = 2 * self.kv_heads * (2 * self.window_size - 1) * self.head_dim
        folded = self.key_maps * 2 * self.feature_dim * (self.head_dim + 1)
        return live * dtype.itemsize + folded * accumulation_dtype(dtype).itemsize


def layer_attention(config: Any, index: int) -> HybridAttention:
    """Return the attention of a layer of the model that `config` describes; all its layers are alike.

    Read from `config`, besides Llama's own sizes:
        window: tokens per block of the terraced window; a query sees its own block and the one before.
        feature_dim: columns of each feature map's matrix; there are twice as many features.
        key_maps: which heads have a key feature map of their own, "perQueryHead" or "perKeyValueHead".

    Raises:
        ValueError: key_maps is unknown.
    """
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    key_maps = {"perQueryHead": heads, "perKeyValueHead": kv_heads}
    if config.key_maps not in key_maps:
        raise ValueError(f"key_maps must be one of {', '.join(key_maps)}, not {config.key_maps!r}")
    return HybridAttention(
        heads, kv_heads, key_maps[config.key_maps], config.head_dim, config.feature_dim, config.window
    )


def _kernel_for(x: HybridInputs) -> Any:
    """Return the kernels that take a whole prompt; None where plain torch must: on a CPU, for gradients."""
    if not x.q.is_cuda or x.q.shape[2] == 1 or torch.compiler.is_compiling() or not _is_built(x.q.device):
        return None
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in x[:6]):
        return None
    from . import prompt_kernel  # imports Triton: only where it is wanted

    return prompt_kernel if prompt_kernel.takes(x) else None


@functools.cache
def _is_built(device: torch.device) -> bool:
    """Say whether Triton is there, and the GPU has matrix units for bf16."""
    has_triton = torch.version.hip is None and importlib.util.find_spec("triton") is not None
    return has_triton and torch.cuda.get_device_capability(device) >= (8, 0)


def _decode_alike(x: HybridInputs, state: HybridState) -> torch.Tensor:
    """Attend where every sequence has as many tokens as the others."""
    new_tokens = x.q.shape[2]
    kernel = _kernel_for(x) if state.keys is None else None
    if state.keys is not None and state.values is not None:
        x = x._replace(k=torch.cat([state.keys, x.k], dim=2), v=torch.cat([state.values, x.v], dim=2))
    leaving = max(x.k.shape[2] // x.window_size - 1, 0) * x.window_size
    folded = None
    if kernel is not None:
        y, folded = kernel.attend(x, leaving)
    elif new_tokens == 1:
        y = one_query(x, state.folded)
    else:
        padded = x._replace(q=F.pad(x.q, (0, 0, x.k.shape[2] - new_tokens, 0)))
        y = forward(padded, "both", state.folded)[0][:, :, -new_tokens:]
    if kernel is None and leaving:
        folded = fold(x.k[:, :, :leaving], x.v[:, :, :leaving], x.w_k)
    if folded is not None:
        _add(state, None, folded)
    state.keys, state.values = (_kept(tensor, leaving) for tensor in (x.k, x.v))
    return y


def _kept(tensor: torch.Tensor, leaving: int) -> torch.Tensor:
    """Return what stays, without the memory of what leaves."""
    return tensor[:, :, leaving:].clone() if leaving else tensor


def _decode_ragged(x: HybridInputs, state: HybridState, visible_BT: torch.Tensor | None) -> torch.Tensor:
    """Attend where sequences differ: each one's live tokens and then its new ones, from its own block on."""
    batch, _, new_tokens, _ = x.q.shape
    device = x.q.device
    held = 0 if state.keys is None else state.keys.shape[2]
    live_B = torch.full((batch,), held) if state.live is None else state.live
    total_B, order_BT = live_B + new_tokens, None
    if visible_BT is not None:
        total_B, order_BT = live_B + visible_BT.sum(1).cpu(), visible_first(visible_BT)
        x = x._replace(**{name: take(getattr(x, name), order_BT) for name in ("q", "k", "v")})
    kernel = _kernel_for(x) if held == 0 else None
    if kernel is not None:
        leaving_B = _leaving(total_B, x.window_size)
        y, folded = kernel.attend(x, leaving_B.to(device))
        if int(leaving_B.max()):
            _add(state, None, folded)
        _keep_ragged(x, state, total_B, leaving_B)
        return y if order_BT is None else put_back(y, order_BT)

    column_X = torch.arange(int(live_B.max()) + new_tokens, device=device)
    new_BX = column_X - live_B.to(device)[:, None]  # which of the new tokens stands there, if not below 0
    index_BX = torch.where(new_BX < 0, column_X, new_BX.clamp_max(new_tokens - 1) + held)
    k, v = x.k, x.v
    if state.keys is not None and state.values is not None:
        k, v = torch.cat([state.keys, k], dim=2), torch.cat([state.values, v], dim=2)
    x = x._replace(k=take(k, index_BX), v=take(v, index_BX))
    if new_tokens == 1 and order_BT is None:
        y = one_query(x, state.folded, column_X < total_B.to(device)[:, None])
    else:
        rows = x._replace(q=take(x.q, new_BX.clamp(0, new_tokens - 1)))
        place_BT = live_B.to(device)[:, None] + torch.arange(new_tokens, device=device)
        y = take(forward(rows, "both", state.folded)[0], place_BT)
    _remember_ragged(x, state, total_B)
    return y if order_BT is None else put_back(y, order_BT)


def _remember_ragged(x: HybridInputs, state: HybridState, total_B: torch.Tensor) -> None:
    """Fold each sequence's own blocks, and keep the rest of its first `total_B` tokens."""
    device, leaving_B = x.k.device, _leaving(total_B, x.window_size)
    rows = leaving_B.nonzero()[:, 0]
    if len(rows):
        most, some = int(leaving_B.max()), rows.to(device)
        seen = torch.arange(most, device=device) < leaving_B[rows].to(device)[:, None]
        _add(state, some, fold(x.k[some, :, :most], x.v[some, :, :most], x.w_k, seen), len(total_B))
    _keep_ragged(x, state, total_B, leaving_B)


def _leaving(total_B: torch.Tensor, window_size: int) -> torch.Tensor:
    """Return how many tokens leave the terrace of sequences of `total_B`: whole blocks."""
    return (total_B // window_size - 1).clamp_min(0) * window_size


def _keep_ragged(x: HybridInputs, state: HybridState, total_B: torch.Tensor, leaving_B: torch.Tensor) -> None:
    """Keep what is not folded of each sequence's first `total_B` tokens."""
    device = x.k.device
    state.live = total_B - leaving_B
    kept_L = torch.arange(int(state.live.max()), device=device)
    index_BL = (kept_L + leaving_B.to(device)[:, None]).clamp_max(x.k.shape[2] - 1)
    state.keys, state.values = take(x.k, index_BL), take(x.v, index_BL)


def _add(state: HybridState, rows: torch.Tensor | None, folded: Folded, batch: int = 0) -> None:
    """Add to the state what left the terrace: of every sequence, or of `rows` among `batch`."""
    for name, new in folded._asdict().items():
        old = getattr(state, name)
        if rows is not None:
            old = new.new_zeros(batch, *new.shape[1:]) if old is None else old
            setattr(state, name, old.index_add(0, rows, new))
        else:
            setattr(state, name, new if old is None else old + new)
