"""Softmax over the first tokens and a sliding window by itself: full forward and decode, in plain torch.

An exported checkpoint carries this file as ``student_attention.py``; it imports torch and its neighbours
``blocks.py``, ``flash.py``, ``stepping.py`` and, on a GPU with Triton, ``prompt_kernel.py``.

The query at position i of a layer with window w and S first tokens gives softmax weights to the keys at

    j <= i  with  j < S  or  i - j < w

and to no other: a sliding window, and the first tokens as attention sinks (StreamingLLM, arXiv 2309.17453).
Keys keep the teacher's own RoPE, and nothing is trained.  Decoding remembers S + w keys and values.

Shape letters: B batch, H query heads, K key/value heads (K divides H), G = H / K, T tokens, D head dimension,
S first tokens, R later keys at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .blocks import Pair
from .blocks import attend as attend_in_blocks
from .flash import attend as attend_by_flash
from .flash import kernel_for, takes
from .stepping import FixedWindow, Heads

Parameters = Mapping[str, torch.Tensor]
"""The trainable tensors of one layer by name: none."""


@dataclass
class WindowState:
    """What decoding remembers of one layer: constant in size however many tokens have passed.

    Slots 0 to S - 1 hold the first tokens, the w slots after them are a ring of the others: position p >= S
    stands in slot S + (p - S) mod w.  So the next query sees every slot that is taken, and no other key.

    Attributes:
        keys: keys after RoPE, [B, K, slots, D]; there are S + w slots once as many tokens have passed.
        values: their values, shaped alike.
        tokens: how many tokens have been seen, hidden ones included.
        hidden: how many of them were hidden in each sequence, [B]; None while none was.
    """

    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    tokens: int = 0
    hidden: torch.Tensor | None = None

    @property
    def batch_size(self) -> int:
        """How many sequences are remembered: 0 before the first token."""
        return 0 if self.keys is None else self.keys.shape[0]

    def kept(self, new: Pair) -> Pair:
        """Return the slots; before the first token none, shaped like `new`."""
        if self.keys is None or self.values is None:
            return new.part(0, 0)
        return Pair(self.keys, self.values)

    def reorder(self, rows: torch.Tensor) -> None:
        """Keep the sequences named by `rows`, in that order (beam search)."""
        for name in ("keys", "values", "hidden"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor.index_select(0, rows.to(tensor.device)))


@dataclass(frozen=True)
class WindowAttention(FixedWindow):
    """One layer's attention over the first tokens and the last ones.

    Methods take `heads`, whose tokens are counted from the first visible one given, wherever its RoPE began,
    and `parameters`, of which there are none.  `visible`, [B, T], says which tokens are the sequence's own:
    the others (padding, at either end) are no keys and are not counted, and their output means nothing.

    Attributes:
        heads: H.
        kv_heads: K.
        head_dim: D.
        window: w, last tokens that a query sees, its own included.
        first_tokens: S, tokens at the start that every query sees.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int
    first_tokens: int

    takes_padding = True
    """Whether `visible` may be given."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the trainable parameters: there are none."""
        return {}

    def initialize(
        self, name: str, tensor: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Refuse: there is no parameter to fill."""
        raise ValueError(f"a window has no parameter called {name}")

    def attend(
        self,
        heads: Heads,
        parameters: Parameters,
        keep_parts: str = "both",
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the attention's output before o_proj, [B, H, T, D], in the dtype of q.

        Memory is linear in the number of tokens, and every input gets its gradient.

        Raises:
            ValueError: shapes do not belong together, or `keep_parts` names a part: there is but the whole.
        """
        if keep_parts != "both":
            raise ValueError(f"a window has no parts: keep_parts must be both, not {keep_parts!r}")
        if visible is not None:
            return self.decode(self.new_state(), heads, parameters, visible)
        q, k, v = _checked(heads)
        first = Pair(k, v).part(0, self.first_tokens)
        return self._attend_all(q, first, Pair(k, v), 0)

    def new_state(self) -> WindowState:
        """Return what decoding remembers before the first token."""
        return WindowState()

    def decode(
        self,
        state: WindowState,
        heads: Heads,
        parameters: Parameters,
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend from the next token(s) and update `state`: the same as the full forward's last rows.

        Arguments and result are those of `attend`, with T the number of new tokens: 1 when generating, any
        number for a prompt.
        """
        q, _, _ = heads = _checked(heads)
        if visible is not None:
            y = self._attend_ragged(state, heads, visible)
        elif q.shape[2] == 1:
            y = self._attend_one(state, heads)
        elif state.hidden is not None:
            everything = torch.ones_like(q[:, 0, :, 0], dtype=torch.bool)
            y = self._attend_ragged(state, heads, everything)
        else:
            y = self._attend_many(state, heads)
        state.tokens += q.shape[2]
        return y

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Return the most bytes that decoding remembers of one sequence whose keys have `dtype`."""
        return 2 * self.kv_heads * self._slots * self.head_dim * dtype.itemsize

    @property
    def _slots(self) -> int:
        return self.first_tokens + self.window

    def slot(self, position: Any) -> Any:
        """Return the slot of a position that is not among the first: an int's, or a tensor's."""
        return self.first_tokens + (position - self.first_tokens) % self.window

    def _attend_one(self, state: WindowState, heads: Heads) -> torch.Tensor:
        """Attend from one token, visible in every sequence, to every slot that is taken."""
        q, k, v = heads
        self._reserve(state, Pair(k, v))
        mask, taken = None, min(state.tokens + 1, self._slots)
        position_B = torch.full_like(k[:, 0, 0, 0], state.tokens, dtype=torch.long)
        if state.hidden is not None:
            position_B = position_B - state.hidden
            mask = (torch.arange(taken, device=k.device) <= position_B[:, None])[:, None, None]
        slot_B = torch.where(position_B < self.first_tokens, position_B, self.slot(position_B))
        index = slot_B.view(-1, 1, 1, 1).expand_as(k)
        state.keys, state.values = _write(state.keys, index, k), _write(state.values, index, v)
        q_BKGD = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
        y_BKGD = F.scaled_dot_product_attention(
            q_BKGD, state.keys[:, :, :taken], state.values[:, :, :taken], mask
        )
        return y_BKGD.reshape(q.shape)

    def _attend_many(self, state: WindowState, heads: Heads) -> torch.Tensor:
        """Attend from several tokens, no token of any sequence being hidden."""
        q, *new_tensors = heads
        new, old = Pair(*new_tensors), state.kept(Pair(*new_tensors))
        seen, total, first_tokens = state.tokens, state.tokens + q.shape[2], self.first_tokens
        if not seen:
            state.keys, state.values = (self._ring(x) for x in new)
            return self._attend_all(q, new.part(0, first_tokens), new, 0)
        later = min(max(seen - first_tokens, 0), self.window)
        oldest = self.slot(seen) if seen > self._slots else first_tokens
        rest = old.part(oldest, first_tokens + later).followed_by(old.part(first_tokens, oldest), new)
        missing = new.part(0, max(first_tokens - seen, 0))
        first = old.part(0, min(seen, first_tokens)).followed_by(missing)
        slot_X = torch.arange(min(self._slots, total), device=q.device)
        held_X = self._held(slot_X, total)
        index_X = torch.where(held_X < seen, slot_X, held_X - seen + old.k.shape[2])
        state.keys, state.values = (x.index_select(2, index_X) for x in old.followed_by(new))
        return self._attend_all(q, first, rest, seen - later)

    def _attend_all(
        self, q: torch.Tensor, first: Pair, rest: Pair, start: int | torch.Tensor
    ) -> torch.Tensor:
        """Attend from the last tokens of `rest`: `blocks.attend`."""
        if isinstance(start, int) and start == 0 and q.shape[2] <= self._slots:  # nothing is out of sight yet
            return F.scaled_dot_product_attention(
                q, *rest, is_causal=True, enable_gqa=q.shape[1] != rest.k.shape[1]
            )
        if takes(q, start, self.first_tokens):
            kernel = kernel_for(q, *rest) if q.shape[2] == rest.k.shape[2] else None
            if kernel is not None:  # of a whole prompt
                return kernel.attend(q, *rest, self.window, self.first_tokens)
            return attend_by_flash(q, first, rest, start, self.window)
        return attend_in_blocks(q, first, rest, start, self.window, self.first_tokens)

    def _ring(self, x: torch.Tensor) -> torch.Tensor:
        """Return the slots after a prompt, given the keys or values of all its tokens."""
        tokens = x.shape[2]
        if tokens <= self._slots:
            return x.clone()
        turn = tokens - (tokens - self.first_tokens) % self.window  # where the ring's first slot was filled
        parts = (slice(0, self.first_tokens), slice(turn, None), slice(tokens - self.window, turn))
        return torch.cat([x[:, :, part] for part in parts], 2)

    def _held(self, slot: torch.Tensor, total: int | torch.Tensor) -> torch.Tensor:
        """Return the position that each slot holds after `total` tokens, its own where it is not taken."""
        laps = ((total - 1 - slot) // self.window).clamp_min(0)
        return torch.where(slot < self.first_tokens, slot, slot + self.window * laps)

    def _attend_ragged(self, state: WindowState, heads: Heads, visible_BT: torch.Tensor) -> torch.Tensor:
        """Attend where sequences differ in what is hidden: each one's tokens are moved to the end first."""
        q, k, v = heads
        batch, _, new_tokens, _ = k.shape
        hidden_B = state.hidden if state.hidden is not None else visible_BT.new_zeros(batch, dtype=torch.long)
        before_B1 = (state.tokens - hidden_B)[:, None]
        after_B1 = before_B1 + visible_BT.sum(1, keepdim=True)
        order_BT = visible_BT.long().argsort(dim=1, stable=True)  # the hidden ones come first
        old = state.kept(Pair(k, v))
        slots, source = old.k.shape[2], old.followed_by(Pair(k, v))

        def gather(position_BX: torch.Tensor) -> Pair:
            """Take keys and values by their positions; what was not kept or is not there gives any key."""
            new_BX = (position_BX - after_B1 + new_tokens).clamp(0, new_tokens - 1)
            slot_BX = torch.where(position_BX < self.first_tokens, position_BX, self.slot(position_BX))
            old_BX = slot_BX.clamp(0, max(slots - 1, 0))
            index_BX = torch.where(position_BX < before_B1, old_BX, slots + order_BT.gather(1, new_BX))
            return Pair(*(x.gather(2, _index(index_BX, x)) for x in source))

        count = torch.arange(self._slots + new_tokens, device=k.device)[None]
        kernel = kernel_for(q, k, v) if not slots and takes(q, 0, self.first_tokens) else None
        if kernel is not None:  # the hidden ones come last, where none sees them
            last_BT = (~visible_BT).long().argsort(dim=1, stable=True)
            own = (x.gather(2, _index(last_BT, x)) for x in heads)
            y = kernel.attend(*own, self.window, self.first_tokens)
            order = _index(last_BT, q)
        else:
            at_hand = new_tokens + min(slots, self.window)
            first = gather(count[:, : min(self.first_tokens, state.tokens + new_tokens)].expand(batch, -1))
            start_B1 = after_B1 - at_hand
            rest = gather(start_B1 + count[:, :at_hand])
            order = _index(order_BT, q)
            y = self._attend_all(q.gather(2, order), first, rest, start_B1)

        slot_1X = count[:, : min(self._slots, state.tokens + new_tokens)]
        state.keys, state.values = gather(self._held(slot_1X, after_B1))
        state.hidden = hidden_B + new_tokens - visible_BT.sum(1)
        return torch.zeros_like(y).scatter(2, order, y)

    def _reserve(self, state: WindowState, new: Pair) -> None:
        """Make room for another token, unless its slot is there: for as many as there are."""
        old = state.kept(new)
        there = old.k.shape[2]
        if there <= state.tokens and there < self._slots:
            more = min(max(1, there), self._slots - there)
            room = new.k.new_zeros(*new.k.shape[:2], more, self.head_dim)
            state.keys, state.values = old.followed_by(Pair(room, room))


def layer_attention(config: Any, index: int) -> WindowAttention:
    """Return the attention of a layer of the model that `config` describes.

    Read from `config`, besides Llama's own sizes:
        windows: the last tokens that a query sees, by layer; None where a layer keeps softmax attention.
        first_tokens: tokens at the start that every query sees.

    Raises:
        ValueError: the layer has no window, or a size that no window has.
    """
    window, first_tokens = config.windows[index], config.first_tokens
    if window is None or window < 1 or first_tokens < 0:
        raise ValueError(f"layer {index} cannot have window {window} and {first_tokens} first tokens")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return WindowAttention(heads, kv_heads, config.head_dim, window, first_tokens)


def _checked(heads: Heads) -> Heads:
    q, k, v = heads
    if q.ndim != 4 or k.ndim != 4 or q.shape[2] < 1:
        raise ValueError("q, k and v must be [batch, heads, tokens, head_dim] of one token or more")
    if k.shape != v.shape or k.shape[0] != q.shape[0] or k.shape[2:] != q.shape[2:]:
        raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} do not match q {tuple(q.shape)}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot be grouped over {k.shape[1]} key/value heads")
    return q, k, v


def _index(index_BX: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Name the same tokens for every head and dimension of `x`, [B, heads, tokens, D]."""
    return index_BX[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])


def _write(slots: torch.Tensor, index: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Put `x` into `slots`, in place unless a gradient may have to find what stood there."""
    if torch.is_grad_enabled() and (slots.requires_grad or x.requires_grad):
        return slots.scatter(2, index, x)
    return slots.scatter_(2, index, x)
