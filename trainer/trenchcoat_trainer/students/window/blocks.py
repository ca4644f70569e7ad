"""Queries in blocks, each with the first tokens and the keys that its windows reach: on any device.

An exported checkpoint carries this file beside ``student_attention.py``, so it must import only torch.

Shape letters as in ``attention.py``; N blocks of C queries, M = G C rows of a block, L keys that it looks at,
U of them behind the first tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

BLOCK = (64, 256)
"""Fewest and most queries of a block; between them it is as long as the window."""


class Pair(NamedTuple):
    """Keys and values of the same tokens, each [B, K, tokens, D]."""

    k: torch.Tensor
    v: torch.Tensor

    def part(self, start: int, stop: int) -> Pair:
        """Return the tokens from `start` to before `stop`."""
        return Pair(self.k[:, :, start:stop], self.v[:, :, start:stop])

    def followed_by(self, *others: Pair) -> Pair:
        """Return these tokens and then those of `others`."""
        return Pair(*(torch.cat(tensors, 2) for tensors in zip(self, *others, strict=True)))


def attend(
    q_BHTD: torch.Tensor,
    first: Pair,
    rest: Pair,
    start: int | torch.Tensor,
    window: int,
    first_tokens: int,
) -> torch.Tensor:
    """Attend from the last T of `rest` to the first tokens and to the window; returns [B, H, T, D].

    A block of queries looks at the first tokens and at the keys that any of its windows reaches.

    Args:
        q_BHTD: queries.
        first: the first tokens, or as many as there are by the last query.
        rest: the last R tokens, the queries' own at the end; those of them that are first tokens are seen in
            `first` alone.
        start: position of the first of `rest`, or [B, 1] where sequences differ; below 0 what is hidden.
        window: w.
        first_tokens: S.
    """
    batch, kv_heads, keys, _ = rest.k.shape
    tokens = q_BHTD.shape[2]
    window = min(window, keys)
    length = min(tokens, max(BLOCK[0], min(window, BLOCK[1])))
    blocks = -(-tokens // length)
    padding = blocks * length - tokens
    # The queries of a group are rows of one head, so that its keys need no repeating.
    q_BHND = F.pad(q_BHTD, (0, 0, 0, padding)).unflatten(2, (blocks, length))
    q_BNKMD = q_BHND.unflatten(1, (kv_heads, -1)).permute(0, 3, 1, 2, 4, 5).flatten(3, 4)
    before = window - 1 - (keys - tokens)  # how far block 0 looks beyond `rest`, if above 0
    k_BNKLD, v_BNKLD = (
        _spans(of_first, of_rest, (before, padding), length, length + window - 1)
        for of_first, of_rest in zip(first, rest, strict=True)
    )
    # Position of the first key of `rest` that each block looks at.
    spans_BN = (torch.arange(blocks, device=q_BHTD.device) * length - before + start).view(-1, blocks)
    if isinstance(start, int):  # after the early ones all blocks see alike, and share one mask
        early = min(max(-(-(max(first_tokens - start, 0) + before) // length), 0), blocks)
        # Filled on the device: a number that is copied to a GPU has the host wait for it.
        lowest = torch.full((), max(start, first_tokens), device=q_BHTD.device)
    else:
        early, lowest = blocks, start.clamp_min(first_tokens)
    rows = []
    for some in (slice(0, early), slice(early, blocks)):
        if some.start == some.stop:
            continue
        spans = spans_BN[:, some] if some.start == 0 and early else spans_BN[:, early : early + 1]
        mask_BNCL = _seen(spans, lowest, length, window, first.k.shape[2])
        mask_BNML = mask_BNCL.repeat(1, 1, q_BHTD.shape[1] // kv_heads, 1)
        if spans.shape[1] > 1:
            mask_BNML = mask_BNML.expand(batch, -1, -1, -1)
        rows.append(
            F.scaled_dot_product_attention(
                *(x[:, some].flatten(0, 1) for x in (q_BNKMD, k_BNKLD, v_BNKLD)),
                mask_BNML.flatten(0, 1)[:, None],
            ).unflatten(0, (batch, -1))
        )
    y_BNKGCD = torch.cat(rows, dim=1).unflatten(3, (-1, length))
    return y_BNKGCD.permute(0, 2, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)[:, :, :tokens]


def _spans(
    first_BKSD: torch.Tensor, rest_BKRD: torch.Tensor, padding: tuple[int, int], length: int, span: int
) -> torch.Tensor:
    """Cut what every block looks at, `span` keys of the rest behind the first tokens: [B, N, K, L, D]."""
    padded_BKXD = F.pad(rest_BKRD, (0, 0, *padding))
    blocks_BNKUD = padded_BKXD.unfold(2, span, length).permute(0, 2, 1, 4, 3)
    first_BNKSD = first_BKSD[:, None].expand(-1, blocks_BNKUD.shape[1], -1, -1, -1)
    return torch.cat([first_BNKSD, blocks_BNKUD], dim=3)


def _seen(spans_BN: torch.Tensor, lowest: torch.Tensor, length: int, window: int, first: int) -> torch.Tensor:
    """Return which keys each query of a block sees, bool [B, N, C, L]: the first tokens, then its span's.

    Args:
        spans_BN: position of the first key of every block's span.
        lowest: position from which keys are seen in the span, a scalar or [B, 1].
        length: C.
        window: w.
        first: how many first tokens are at hand.
    """
    row_C1 = torch.arange(length, device=spans_BN.device)[:, None]
    column_U = torch.arange(length + window - 1, device=spans_BN.device)
    query_BNC1 = spans_BN[..., None, None] + window - 1 + row_C1
    within_CU = (column_U >= row_C1) & (column_U < row_C1 + window)
    is_there_BNU = spans_BN[..., None] + column_U >= lowest[..., None]
    # A hidden query sees itself alone: a row without any key would not be a number.
    is_itself_CU = column_U == row_C1 + window - 1
    of_span = (within_CU & is_there_BNU[..., None, :]) | (is_itself_CU & (query_BNC1 < 0))
    of_first = torch.arange(first, device=spans_BN.device) <= query_BNC1
    return torch.cat([of_first, of_span], dim=-1)
