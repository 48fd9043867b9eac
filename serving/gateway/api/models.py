"""Models: which there are, as OpenAI's API lists them."""

from __future__ import annotations

import msgspec

from serving.errors import ModelNotFound
from serving.gateway.api.visit import Visit
from serving.gateway.fleet.names import NAME_CHARS_MAX, Names
from serving.gateway.identity.tenants import Tenants


class ModelCard(msgspec.Struct):
    id: str
    created: int
    object: str = "model"
    owned_by: str = "serving"
    #: Longest prompt plus output, in tokens, as vLLM says it.
    max_model_len: int | None = None
    #: Output tokens of a call that sets no limit of its own; absent where the context is the only limit.
    default_output_tokens: int | None = None
    #: The model an adapter belongs to, as vLLM says it.
    parent: str | None = None


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: str = "list"


class Models:
    """Lists what clients may ask for, aliases and adapters included."""

    def __init__(self, tenants: Tenants, names: Names) -> None:
        self._tenants = tenants
        self._names = names

    async def list_all(self, visit: Visit) -> None:
        """`GET /v1/models`."""
        visit.record.caller = await self._tenants.identify(visit.request.presented_key())
        await visit.answer(200, ModelList(data=self._cards()))

    async def show(self, visit: Visit) -> None:
        """`GET /v1/models/{id}`."""
        visit.record.caller = await self._tenants.identify(visit.request.presented_key())
        for card in self._cards():
            if card.id == visit.argument:
                return await visit.answer(200, card)
        raise ModelNotFound(visit.argument[:NAME_CHARS_MAX])

    def _cards(self) -> list[ModelCard]:
        return [
            ModelCard(
                id=name,
                created=model.first_seen_s,
                max_model_len=model.context_tokens or None,
                default_output_tokens=self._names.default_output_tokens(model.name) or None,
                parent=model.base,
            )
            for name, model in self._names.served().items()
        ]
