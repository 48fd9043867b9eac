"""Passage: what passed between an engine and a client in one call, as the relay tells it to the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from serving.gateway.observe.gaps import Gaps


class Failure(StrEnum):
    """How an attempt at a replica ended that gave the client nothing."""

    #: Nobody listens at the replica's address.
    REFUSED = "refused"
    #: The connection broke: the engine died, or the connection was stale.
    BROKEN = "broken"
    #: The engine answered that it failed.
    ERRORED = "errored"
    #: The engine cannot take the call now.
    BUSY = "busy"


class Passage(msgspec.Struct, frozen=True):
    """One call, from when its model was known."""

    #: It had to wait for a replica.
    was_held: bool = False
    bytes_passed: int = 0
    keep_alives: int = 0
    gaps: Gaps | None = None
    #: Kind of failure → attempts at replicas that ended so.
    failures: Mapping[str, int] = {}
    #: Replicas at whose address nobody answered.
    lost: int = 0
