"""Models: which there are, as OpenAI's API lists them, and Anthropic's to its own clients."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from serving.errors import InvalidRequest, ModelNotFound
from serving.gateway.admission import bounds
from serving.gateway.api.visit import Handler, Visit
from serving.gateway.fleet.fleet import Model
from serving.gateway.fleet.names import NAME_CHARS_MAX, Names
from serving.gateway.http.routing import About, Entry
from serving.gateway.identity.identity import Identity

#: Models on one page of Anthropic's list, as it documents them: at most, and where a client does not say.
PAGE_MODELS_MAX = 1000
_LIMIT_CHARS_MAX = 9
PAGE_MODELS = 20


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


class AnthropicCard(msgspec.Struct):
    """`ModelInfo`."""

    id: str
    display_name: str
    #: When the gateway first saw it (RFC 3339).
    created_at: str
    #: Longest prompt plus output, in tokens.
    max_input_tokens: int | None
    max_tokens: int | None
    type: str = "model"
    lifecycle: str = "active"


class AnthropicPage(msgspec.Struct):
    data: list[AnthropicCard]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Models:
    """Lists what clients may ask for, aliases and adapters included."""

    def __init__(self, identity: Identity, names: Names) -> None:
        self._identity = identity
        self._names = names

    def entries(self) -> Iterator[Entry[Handler]]:
        """The routes of models."""
        listed = About(
            summary="Models, aliases and adapters that this key may ask for.", tag="models", answer=ModelList
        )
        one = About(summary="One of them.", tag="models", answer=ModelCard)
        yield Entry("GET", "/v1/models", self.list_all, about=listed)
        yield Entry("GET", "/v1/models/{id}", self.show, about=one)

    async def list_all(self, visit: Visit) -> None:
        """`GET /v1/models`."""
        served = await self._served(visit)
        if visit.is_anthropic:
            return await visit.answer(200, _page(served, visit))
        return await visit.answer(200, ModelList(data=[self._card(name, model) for name, model in served.items()]))

    async def show(self, visit: Visit) -> None:
        """`GET /v1/models/{id}`."""
        model = (await self._served(visit)).get(visit.argument)
        if model is None:
            raise ModelNotFound(visit.argument[:NAME_CHARS_MAX])
        card = _anthropic_card if visit.is_anthropic else self._card
        await visit.answer(200, card(visit.argument, model))

    async def _served(self, visit: Visit) -> dict[str, Model]:
        """What this caller may ask for."""
        visit.record.caller = caller = await self._identity.identify(visit.request)
        served = self._names.served()
        return {name: model for name, model in served.items() if bounds.allows(caller, name, model.name)}

    def _card(self, name: str, model: Model) -> ModelCard:
        return ModelCard(
            id=name,
            created=model.first_seen_s,
            max_model_len=model.context_tokens or None,
            default_output_tokens=self._names.default_output_tokens(model.name) or None,
            parent=model.base,
        )


def _anthropic_card(name: str, model: Model) -> AnthropicCard:
    return AnthropicCard(
        id=name,
        display_name=name,
        created_at=datetime.fromtimestamp(model.first_seen_s, UTC).isoformat().replace("+00:00", "Z"),
        max_input_tokens=model.context_tokens or None,
        max_tokens=model.context_tokens or None,
    )


def _page(served: dict[str, Model], visit: Visit) -> AnthropicPage:
    """The models after `after_id`, or the last ones before `before_id`; raises InvalidRequest for a page that there cannot be."""
    query, ids = visit.request.query, list(served)
    limit = query("limit") or str(PAGE_MODELS)
    if not limit.isdecimal() or len(limit) > _LIMIT_CHARS_MAX or not 1 <= int(limit) <= PAGE_MODELS_MAX:
        raise InvalidRequest(f"limit: Input should be a number from 1 to {PAGE_MODELS_MAX}.", param="limit")
    size = int(limit)
    if before := query("before_id"):
        left = ids[: _place(ids, before, "before_id")]
        page, has_more = left[-size:], len(left) > size
    else:
        after = query("after_id")
        left = ids[_place(ids, after, "after_id") + 1 :] if after else ids
        page, has_more = left[:size], len(left) > size
    cards = [_anthropic_card(name, served[name]) for name in page]
    return AnthropicPage(cards, has_more, page[0] if page else None, page[-1] if page else None)


def _place(ids: list[str], name: str, param: str) -> int:
    if name not in ids:
        raise InvalidRequest(f"{param}: There is no such model.", param=param)
    return ids.index(name)
