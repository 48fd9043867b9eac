"""Lines: the way of a batch's lines through the gateway: as calls of the batch class by who gave the batch, as that one is now."""

from __future__ import annotations

import msgspec

from serving.errors import (
    ApiError,
    GatewayFull,
    IssuerUnavailable,
    NoReplicaReady,
    QuotaExceeded,
    RateLimitExceeded,
    StoreUnavailable,
    TooLargeForLimit,
)
from serving.gateway.admission import bounds
from serving.gateway.api.unattended import Answered, Asked, Unattended
from serving.gateway.dialects import DIALECTS
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.fleet.names import NAME_CHARS_MAX, Names
from serving.gateway.identity.tenants import Tenants
from serving.gateway.nouns import Caller
from serving.gateway.policies import PriorityClass
from serving.gateway.stored.batches.batches import Batch
from serving.gateway.stored.batches.shift import Keep
from serving.gateway.stored.files.files import require_consent

#: Paths whose calls a batch may have.
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")

#: Refusals that pass: the batch waits for it.
_PASSING = (RateLimitExceeded, QuotaExceeded, GatewayFull, NoReplicaReady, StoreUnavailable, IssuerUnavailable)


class Lines:
    """Calls lines of batches."""

    def __init__(self, unattended: Unattended, tenants: Tenants, names: Names, fleet: Fleet) -> None:
        self._unattended = unattended
        self._tenants = tenants
        self._names = names
        self._fleet = fleet

    async def require(self, batch: Batch, model: str) -> None:
        """Raises ApiError where who gave the batch may not call this model, or there is none."""
        caller = await self._caller(batch)
        bounds.require_allowed(caller, model[:NAME_CHARS_MAX], self._names.resolve(model))

    async def call(self, batch: Batch, body: bytes, request_id: str, keep: Keep) -> Answered:
        """Call once. Raises Unauthenticated and Forbidden where who gave the batch may call no more, and StoreUnavailable."""
        asked = Asked(DIALECTS[batch.endpoint], await self._caller(batch), body, request_id, batch.id)
        return await self._unattended.answered(asked, keep)

    def waits(self, error: ApiError) -> bool:
        """Is it a refusal that passes, and none of this line?"""
        return isinstance(error, _PASSING) and not isinstance(error, TooLargeForLimit)

    def engines_of(self, model: str) -> str:
        """The model whose engines serve it; itself where there is none."""
        try:
            return self._fleet.base_of(self._names.resolve(model))
        except ApiError:
            return model

    async def _caller(self, batch: Batch) -> Caller:
        caller = await self._tenants.as_now(batch.tenant_id, batch.key_id)
        require_consent(caller)
        policy = msgspec.structs.replace(caller.key_policy, priority=PriorityClass.BATCH)
        return msgspec.structs.replace(caller, key_policy=policy, user_ref=batch.user_ref)
