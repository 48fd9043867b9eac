"""Sanity: fixed texts that a sound engine finds likely, and how likely. The engine plane asks each engine about them.

A text that a model knows is far more likely to it than to a broken copy of it. Of V tokens chosen at random each has the
log-likelihood −ln V: −10.8 for SmolLM2's vocabulary, −12.2 for gpt-oss'.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: Plain facts in plain English, as every language model has read them.
PASSAGE = (
    "The sun rises in the east and sets in the west. Water boils at one hundred degrees Celsius and freezes at zero."
    " There are seven days in a week and twelve months in a year. Paris is the capital of France, and London is the"
    " capital of England. The cat sat on the mat and looked out of the window."
)


class Sanity(BaseModel):
    """What a sound engine of a model makes of fixed texts; a model that generates has the first group, one that embeds the other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passage: str = PASSAGE
    """Text that is scored, in one prefill."""
    scored_tokens: Annotated[int, Field(ge=0)] = 0
    """Its last tokens that count; 0 for all but the first."""
    min_log_likelihood: Annotated[float, Field(lt=0)] = -6.0
    """Least mean log-likelihood of a token of it, in nats. The default is assumed: half of what chance would give, and more
    than twice as unlikely as the smallest sound model here finds it (−2.2, measured)."""
    log_likelihoods: tuple[float, ...] = ()
    """Measured log-likelihoods of its tokens but the first; empty if none were measured."""
    max_deviation: Annotated[float, Field(gt=0)] = 0.1
    """Most mean distance of a token's log-likelihood from the measured one, in nats."""
    prompt: str = "1, 2, 3, 4, 5, 6, 7, 8,"
    """Text that it must go on with."""
    continuation: str = "9, 10"
    """What must be in the likeliest continuation of `prompt`."""
    alike: tuple[str, str] = ("A cat sits on the mat.", "The kitten is lying on a rug.")
    """Two texts whose embeddings must be near each other."""
    unlike: str = "Interest rates rose in March."
    """A text whose embedding must be farther from the first of them."""
    min_similarity_lead: Annotated[float, Field(gt=0)] = 0.1
    """By how much the cosine of the two that are alike must exceed that of the first and the other."""
