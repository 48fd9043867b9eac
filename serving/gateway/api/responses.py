"""Responses: what is stored of `/v1/responses`, for clients that come back: read, list its input, stream it again, cancel, delete.

For a tenant that has nothing stored these routes are not there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

import msgspec

from serving.config import GatewaySettings
from serving.errors import InvalidRequest, RequestTimedOut, RouteNotFound
from serving.gateway.admission.admission import Admission
from serving.gateway.admission.memory import Share
from serving.gateway.api.background import Background
from serving.gateway.api.visit import Handler, Visit
from serving.gateway.http.routing import About, Entry
from serving.gateway.identity.identity import Identity
from serving.gateway.nouns import Caller
from serving.gateway.stored import items, keeping
from serving.gateway.stored.memory import Memory

PATH = "/v1/responses/{id}"
CANCEL_PATH = f"{PATH}/cancel"
INPUT_PATH = f"{PATH}/input_items"
COMPACT_PATH = "/v1/responses/compact"
#: Where the API's document has what is stored, and what a page of items is asked by.
TAG = "stored"
PAGED = {"after": "The item behind which the page begins.", "limit": "1 to 100.", "order": "`asc` or `desc`."}
#: Digits of an event's number.
NUMBER_CHARS_MAX = 15


class Responses:
    """Answers below `/v1/responses/`."""

    def __init__(
        self,
        settings: GatewaySettings,
        identity: Identity,
        admission: Admission,
        memory: Memory,
        background: Background,
    ) -> None:
        self._read_s = settings.timeouts.request_total_s
        self._identity = identity
        self._admission = admission
        self._memory = memory
        self._background = background

    def entries(self) -> Iterator[Entry[Handler]]:
        """The routes of stored responses."""
        streamed = {
            "stream": "`true`: its events, of one that was made so.",
            "starting_after": "Those behind this number.",
        }
        about = partial(About, tag=TAG)
        yield Entry("GET", PATH, self.show, about=about(summary="A stored response.", query=streamed))
        yield Entry("DELETE", PATH, self.delete, about=about(summary="Delete it.", answer=items.Deleted))
        yield Entry("POST", CANCEL_PATH, self.cancel, about=about(summary="End one that runs in the background."))
        listed = about(summary="What it was made of.", answer=items.Page, query=PAGED)
        yield Entry("GET", INPUT_PATH, self.list_input, about=listed)
        yield Entry("POST", COMPACT_PATH, self.compact, about=about(summary="Refused: nothing is compacted here."))

    async def show(self, visit: Visit) -> None:
        """`GET /v1/responses/{id}`: the response, or with `stream=true` its events."""
        caller = await required(self._identity, visit)
        shelf, asked = self._memory.shelf, (caller.tenant_id, visit.argument)
        with self._admission.entered(visit.record) as share:
            if visit.request.query("stream") in (None, "false"):
                response = (await self._memory.done(shelf.get, *asked)).response
                await hand_over(visit, share, response, self._read_s)
            else:
                after = _number(visit.request.query("starting_after"))
                found = await self._memory.done(shelf.standing, *asked)
                await self._background.stream(visit, found, caller.tenant_id, after, share.take)

    async def delete(self, visit: Visit) -> None:
        """`DELETE /v1/responses/{id}`."""
        caller = await required(self._identity, visit)
        await self._memory.done(self._memory.shelf.delete, caller.tenant_id, visit.argument)
        self._background.stop(visit.argument)
        await visit.answer(200, items.Deleted(visit.argument, "response"))

    async def cancel(self, visit: Visit) -> None:
        """`POST /v1/responses/{id}/cancel`."""
        caller = await required(self._identity, visit)
        response = (await self._background.cancel(caller.tenant_id, _id_of(visit))).response
        with self._admission.entered(visit.record) as share:
            await hand_over(visit, share, response, self._read_s)

    async def list_input(self, visit: Visit) -> None:
        """`GET /v1/responses/{id}/input_items`."""
        caller = await required(self._identity, visit)
        response_id, asked = _id_of(visit), items.asked(visit.request.query)
        with self._admission.entered(visit.record) as share:
            page = await self._memory.done(self._page, caller.tenant_id, response_id, asked)
            await hand_over(visit, share, page, self._read_s)

    async def compact(self, visit: Visit) -> None:
        """`POST /v1/responses/compact`, which there is not (MEM-13)."""
        visit.record.caller = await self._identity.identify(visit.request)
        raise RouteNotFound(
            f"Invalid URL (POST {COMPACT_PATH}): responses are not compacted here. Ask for a summary in a message, and begin anew with it."
        )

    def _page(self, tenant_id: str, response_id: str, asked: items.Asked) -> bytes:
        said = self._memory.shelf.input_of(tenant_id, response_id)
        return msgspec.json.encode(items.page(said, asked, f"the input of response with id '{response_id}'"))


async def hand_over(visit: Visit, share: Share, body: bytes, limit_s: float) -> None:
    """Answer with what is stored, of any size: a client that does not read holds so much of the gateway's memory, and so long at most.

    Raises GatewayFull and RequestTimedOut.
    """
    share.take(len(body))
    responder = visit.responder
    try:
        async with asyncio.timeout(limit_s):
            length = str(len(body)).encode("ascii")
            await responder.start(200, [(b"content-type", b"application/json"), (b"content-length", length)])
            for piece in keeping.pieces(body):
                await responder.write(piece)
            await responder.finish()
    except TimeoutError:
        raise RequestTimedOut("The answer was not read in time.") from None


async def required(identity: Identity, visit: Visit) -> Caller:
    """Who is calling, of a tenant that has things stored; raises RouteNotFound for any other."""
    visit.record.caller = caller = await identity.identify(visit.request)
    if not Memory.serves(caller):
        raise not_here(visit)
    return caller


def _number(starting_after: str | None) -> int:
    """The number of the event behind which a stream is taken up; -1 for its beginning. Raises InvalidRequest."""
    if starting_after is None:
        return -1
    if not starting_after.isdecimal() or len(starting_after) > NUMBER_CHARS_MAX:
        raise InvalidRequest("Invalid value for 'starting_after': Expected an integer.", param="starting_after")
    return int(starting_after)


def _id_of(visit: Visit) -> str:
    return visit.argument.partition("/")[0]


def not_here(visit: Visit) -> RouteNotFound:
    """There is no such route."""
    return RouteNotFound(f"Invalid URL ({visit.request.method} {visit.request.path[:256]})")
