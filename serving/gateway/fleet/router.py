"""Router: which replica takes this call? A pure ranking."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Candidate(msgspec.Struct, frozen=True):
    """A ready replica as the ranking sees it."""

    replica_id: str
    #: Base URL of its engine.
    url: str
    #: Requests this gateway has on it now.
    own_requests: int = 0
    #: Requests this gateway had on it when it last reported.
    own_when_reported: int = 0
    #: Requests it reported, running and waiting, of all gateways.
    reported_requests: int = 0
    #: Tokens of its context; 0 where it is not known.
    context_tokens: int = 0

    @property
    def committed_requests(self) -> int:
        """Our own now, and the report's without our share of it: no request is counted twice."""
        return self.own_requests + max(0, self.reported_requests - self.own_when_reported)


def rank(candidates: Sequence[Candidate], turn: int) -> list[Candidate]:
    """Fewest committed requests first; equals take turns, in an order that is the same in every gateway."""
    if not candidates:
        return []
    in_order = sorted(candidates, key=lambda candidate: candidate.replica_id)
    first = turn % len(in_order)
    return sorted(in_order[first:] + in_order[:first], key=lambda candidate: candidate.committed_requests)
