"""The choice of wide layers for spec.attention.wide.share: what is told of it, and what it rests on."""

from pydantic import Field

from trenchcoat_api.base import Camel
from trenchcoat_api.spec import FIRST_TOKENS, Attention, Form

SEQUENCES = 24
"""Copy sequences that all layers are scored on."""
TOKENS = 1024
"""Tokens of the longest of them, where the window and spec.data.sequenceLength allow."""


class Selection(Camel):
    """The wide layers that a run chose."""

    layers: list[int] = Field(description="The decoder layers, counted from 0, in order.", max_length=1000)
    scores: list[str] = Field(
        description=(
            "By layer: how far its output moves, in parts of the residual stream, when it sees no further "
            "than the window."
        ),
        max_length=10_000,
    )


def cut_first_tokens(attention: Attention) -> int:
    """Tokens at the start that a layer sees when it is scored with the window alone.

    Form lolcats has no such tokens, but sees them by linear attention: as many stand for that as form window
    sees unless set, for without them every layer would seem to look far back.
    """
    return attention.first_tokens if attention.form is Form.WINDOW else FIRST_TOKENS[Form.WINDOW]
