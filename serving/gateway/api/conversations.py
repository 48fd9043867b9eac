"""Conversations: `/v1/conversations`, what calls add to one after another, for tenants that have responses stored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import msgspec

from serving.config import GatewaySettings
from serving.errors import InvalidRequest, UnknownParameter
from serving.gateway.admission.admission import Admission
from serving.gateway.api.aside import Aside
from serving.gateway.api.responses import PAGED, TAG, hand_over, required
from serving.gateway.api.visit import Handler, Visit
from serving.gateway.dialects import call as calls
from serving.gateway.dialects import checks
from serving.gateway.dialects.checks import typed
from serving.gateway.dialects.items import require_items
from serving.gateway.http.asgi import require_json
from serving.gateway.http.routing import About, Entry
from serving.gateway.identity.identity import Identity
from serving.gateway.nouns import Caller
from serving.gateway.stored import items
from serving.gateway.stored.conversations import Conversation
from serving.gateway.stored.items import Item
from serving.gateway.stored.memory import Memory

PATH = "/v1/conversations"
ONE_PATH = f"{PATH}/{{id}}"
ITEMS_PATH = f"{ONE_PATH}/items"
ITEM_PATH = f"{ITEMS_PATH}/{{item_id}}"
#: Items that one request adds, as at OpenAI.
ADDED_MAX = 20

_metadata = typed(checks.Metadata)


class ConversationsApi:
    """Answers at and below `/v1/conversations`."""

    def __init__(self, settings: GatewaySettings, identity: Identity, admission: Admission, memory: Memory) -> None:
        self._settings = settings
        self._identity = identity
        self._admission = admission
        self._memory = memory
        self._kept = memory.conversations
        self._aside = Aside()

    def entries(self) -> Iterator[Entry[Handler]]:
        """The routes of conversations."""
        about = partial(About, tag=TAG)
        yield Entry("POST", PATH, self.create, about=about(summary="Begin one.", answer=Conversation))
        yield Entry("GET", ONE_PATH, self.show, about=about(summary="A conversation.", answer=Conversation))
        yield Entry("POST", ONE_PATH, self.update, about=about(summary="Give it other metadata.", answer=Conversation))
        deleted = about(summary="Delete it, and its items.", answer=items.Deleted)
        yield Entry("DELETE", ONE_PATH, self.delete, about=deleted)
        listed = about(summary="Its items.", answer=items.Page, query=PAGED)
        yield Entry("GET", ITEMS_PATH, self.list_items, about=listed)
        yield Entry("POST", ITEMS_PATH, self.add_items, about=about(summary="Add items to it.", answer=items.Page))
        yield Entry("GET", ITEM_PATH, self.show_item, about=about(summary="One of its items."))
        removed = about(summary="Delete the item.", answer=Conversation)
        yield Entry("DELETE", ITEM_PATH, self.remove_item, about=removed)

    async def create(self, visit: Visit) -> None:
        """`POST /v1/conversations`."""
        caller = await required(self._identity, visit)
        body = await self._body(visit, ("items", "metadata"))
        said = body.get("items") or []
        await visit.answer(200, await self._memory.done(self._kept.begin, caller, _pairs(body), said))

    async def show(self, visit: Visit) -> None:
        """`GET /v1/conversations/{id}`."""
        caller = await required(self._identity, visit)
        await visit.answer(200, await self._memory.done(self._kept.get, caller.tenant_id, visit.argument))

    async def update(self, visit: Visit) -> None:
        """`POST /v1/conversations/{id}`: other metadata."""
        caller = await required(self._identity, visit)
        body = await self._body(visit, ("metadata",))
        if "metadata" not in body:
            raise InvalidRequest("Missing required parameter: 'metadata'.", param="metadata")
        pairs = _pairs(body)
        await visit.answer(200, await self._memory.done(self._kept.rename, caller.tenant_id, visit.argument, pairs))

    async def delete(self, visit: Visit) -> None:
        """`DELETE /v1/conversations/{id}`."""
        caller = await required(self._identity, visit)
        await self._memory.done(self._kept.delete, caller.tenant_id, visit.argument)
        await visit.answer(200, items.Deleted(visit.argument, "conversation.deleted"))

    async def list_items(self, visit: Visit) -> None:
        """`GET /v1/conversations/{id}/items`."""
        caller = await required(self._identity, visit)
        conversation_id, asked = visit.argument.partition("/")[0], items.asked(visit.request.query)
        await self._hand_over(visit, self._kept.items, caller.tenant_id, conversation_id, asked)

    async def add_items(self, visit: Visit) -> None:
        """`POST /v1/conversations/{id}/items`."""
        caller = await required(self._identity, visit)
        said = (await self._body(visit, ("items",))).get("items")
        if said is None:
            raise _no_list()
        await self._hand_over(visit, self._added, caller, visit.argument.partition("/")[0], said)

    def _added(self, caller: Caller, conversation_id: str, said: list[Item]) -> items.Page:
        added = self._kept.add(caller, conversation_id, said)
        return items.paged(added, len(added))

    async def show_item(self, visit: Visit) -> None:
        """`GET /v1/conversations/{id}/items/{item_id}`."""
        caller = await required(self._identity, visit)
        conversation_id, _, item_id = visit.argument.split("/")
        await self._hand_over(visit, self._kept.item, caller.tenant_id, conversation_id, item_id)

    async def remove_item(self, visit: Visit) -> None:
        """`DELETE /v1/conversations/{id}/items/{item_id}`."""
        caller = await required(self._identity, visit)
        conversation_id, _, item_id = visit.argument.split("/")
        await visit.answer(200, await self._memory.done(self._kept.remove, caller.tenant_id, conversation_id, item_id))

    async def _hand_over(self, visit: Visit, read: Callable[..., object], *asked: object) -> None:
        """Answer with what is kept, which may be large."""
        with self._admission.entered(visit.record) as share:
            found = await self._memory.done(_encoded, read, *asked)
            await hand_over(visit, share, found, self._settings.timeouts.request_total_s)

    async def _body(self, visit: Visit, known: Collection[str]) -> dict[str, Any]:
        """The fields of a request; raises InvalidRequest and its kinds."""
        require_json(visit.request)
        with self._admission.entered(visit.record) as share:
            limit_s = self._settings.timeouts.request_body_s
            raw = await visit.body(self._settings.max_body_bytes, limit_s, share.take)
            return await self._aside.done(partial(_read, raw or b"{}", known), len(raw))


def _encoded(read: Callable[..., object], *asked: object) -> bytes:
    return msgspec.json.encode(read(*asked))


def _read(raw: bytes, known: Collection[str]) -> dict[str, Any]:
    """The fields of a body, with its items as they are kept."""
    body = calls.decoded(raw)
    for name in body:
        if name not in known:
            raise UnknownParameter(name[:128])
    if body.get("items") is not None:
        body["items"] = _said(body["items"])
    return body


def _said(value: object) -> list[Item]:
    if not isinstance(value, list) or len(value) > ADDED_MAX:
        raise _no_list()
    require_items("items", value)
    return items.said(value)


def _no_list() -> InvalidRequest:
    return InvalidRequest(f"Invalid value for 'items': Expected a list of up to {ADDED_MAX} items.", param="items")


def _pairs(body: dict[str, Any]) -> dict[str, str]:
    pairs: dict[str, str] = _metadata("metadata", body.get("metadata") or {})
    return pairs
