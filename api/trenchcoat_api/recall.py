"""What the stitch tells of the synthetic recall that it put into the text."""

from pydantic import Field

from trenchcoat_api.base import Camel


class RecallFacts(Camel):
    """Facts and spans that were shown twice, over all steps."""

    sequences: int = Field(default=0, description="Sequences that have any, each time they were used.", ge=0)
    facts: int = Field(default=0, description="Facts told and asked again.", ge=0)
    spans: int = Field(default=0, description="Spans of random tokens shown twice.", ge=0)
    tokens: int = Field(default=0, description="Tokens of the text that they took the place of.", ge=0)
    asked: int = Field(default=0, description="Those of them that had to be recalled.", ge=0)
