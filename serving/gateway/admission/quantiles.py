"""Quantiles: how long sequences are that have no limit of their own, learned for each tenant and model.

A frugal estimate (Ma, Muthukrishnan and Sandler, Frugal Streaming for Estimating Quantiles, 2013): one number, no history. Its steps
are a share of what it says, so that it finds answers of ten tokens and of ten thousand alike.
"""

from __future__ import annotations

from collections import OrderedDict

#: The share of answers that is not longer.
QUANTILE = 0.9
#: Tokens, before any answer was seen.
FIRST_TOKENS = 512.0
#: A step, as a share of the estimate, and in tokens at least.
STEP, STEP_MIN_TOKENS = 0.1, 1.0
#: Pairs of tenant and model that are remembered; of more, those that called longest ago are forgotten.
PAIRS_MAX = 10_000


class Quantiles:
    """Output tokens that the sequences of nine of ten calls of a tenant to a model do not exceed. Pure."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[tuple[str, str], float] = OrderedDict()

    def tokens(self, tenant_id: str, model: str) -> int:
        """At least 1."""
        return max(1, round(self._tokens.get((tenant_id, model), FIRST_TOKENS)))

    def learn(self, tenant_id: str, model: str, tokens: int) -> None:
        """The sequences of one call without a limit were so long, on average."""
        pair = tenant_id, model
        known = self._tokens.pop(pair, FIRST_TOKENS)
        step = max(STEP_MIN_TOKENS, STEP * known)
        moved = known + step * QUANTILE if tokens > known else known - step * (1 - QUANTILE)
        self._tokens[pair] = max(1.0, moved)
        if len(self._tokens) > PAIRS_MAX:
            self._tokens.popitem(last=False)
