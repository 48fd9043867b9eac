"""Asked: what a client asked that its answer depends on, beside what the engine is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from serving.gateway.answers.reasoning import FORGETFUL, Keeper


class Asked(msgspec.Struct, frozen=True):
    """What a Shaper needs to know of its call."""

    #: The client offered tools and lets the model call them: any other call is not handed out.
    offers_tools: bool = False
    #: Strings that end the text which the client sees, and whether the one that did is kept.
    stops: tuple[str, ...] = ()
    keeps_stop: bool = False
    #: Output tokens before which no stop string counts.
    min_tokens: int = 0
    wants_logprobs: bool = False
    #: Sequences that the engine generates.
    choices: int = 1
    #: Fields of the request that its answer repeats, as they were sent.
    echoed: Mapping[str, Any] = {}
    #: Where the reasoning before calls of tools is kept.
    keeper: Keeper = FORGETFUL
    #: The client wants reasoning sealed, to carry it itself.
    wants_sealed: bool = False

    @property
    def needs_stream(self) -> bool:
        """Only the engine's stream says what a whole answer needs: which text is content, and how far a call had got."""
        return self.offers_tools or bool(self.stops) or self.wants_logprobs
