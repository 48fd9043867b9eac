"""Inference: calls that an engine answers, in every dialect.

gate → identify → refused in bulk? → open the ledger's row → read → resolve → reserve → admit → relay; the recorder settles whatever ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial

from serving.config import GatewaySettings
from serving.errors import ApiError, EngineTimedOut, RequestTimedOut
from serving.gateway.admission import bounds
from serving.gateway.admission.admission import Admission
from serving.gateway.admission.memory import Share
from serving.gateway.admission.reservations import Reservations
from serving.gateway.answers.reasoning import Reasoning
from serving.gateway.api.aside import Aside
from serving.gateway.api.background import Background, Stage
from serving.gateway.api.visit import Handler, Visit
from serving.gateway.dialects import DIALECTS, abilities
from serving.gateway.dialects import call as calls
from serving.gateway.dialects.call import Call, Draft
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.fleet.names import NAME_CHARS_MAX, Names
from serving.gateway.http.asgi import require_json
from serving.gateway.http.routing import Entry
from serving.gateway.identity.identity import Identity
from serving.gateway.identity.tenants import Tenants
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import Caller, CallRecord, Usage
from serving.gateway.relay.exchange import Exchange
from serving.gateway.relay.relay import Relay
from serving.gateway.relay.sink import Sink
from serving.gateway.stored.memory import Memory
from serving.gateway.stored.turn import Turn

#: Bytes of a body that a log line holds where the settings ask for it.
LOGGED_PROMPT_BYTES = 64 * 1024


class Inference:
    """Answers a POST of any dialect."""

    def __init__(
        self,
        settings: GatewaySettings,
        identity: Identity,
        tenants: Tenants,
        ledger: Ledger,
        names: Names,
        reservations: Reservations,
        admission: Admission,
        relay: Relay,
        reasoning: Reasoning,
        foresee: Callable[[CallRecord, Usage], None],
        memory: Memory,
        background: Background,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._tenants = tenants
        self._ledger = ledger
        self._names = names
        self._reservations = reservations
        self._admission = admission
        self._relay = relay
        self._aside = Aside()
        self._reasoning = reasoning
        self._foresee = foresee
        self._memory = memory
        self._background = background

    def entries(self) -> Iterator[Entry[Handler]]:
        """The routes of all dialects, which describe themselves."""
        for dialect in DIALECTS.values():
            yield Entry("POST", dialect.path, partial(self.serve, dialect), dialect.is_billed)

    async def serve(self, dialect: Dialect, visit: Visit) -> None:
        """Answer one call; raises ApiError, and ClientLeft when the client does not wait for the answer."""
        with self._admission.entered(visit.record) as share:
            visit.record.caller = caller = await self._identity.identify(visit.request)
            with self._admission.within_refusals(caller, visit.record):
                await self._serve(dialect, caller, visit, share)

    async def serve_line(self, dialect: Dialect, caller: Caller, visit: Visit) -> None:
        """Answer a line of a batch, for the caller who gave it; raises ApiError. How often a batch tries is its own matter."""
        with self._admission.entered(visit.record) as share:
            visit.record.caller = caller
            await self._serve(dialect, caller, visit, share)

    async def _serve(self, dialect: Dialect, caller: Caller, visit: Visit, share: Share) -> None:
        self._ledger.open(visit.record)
        visit.responder.wait_for(partial(self._ledger.kept, visit.record))
        try:
            async with asyncio.timeout(self._settings.timeouts.request_total_s):
                call, turn = await self._read(dialect, caller, visit, share)
                if turn is not None and turn.wish.is_background:
                    perform = partial(self._performed, call, caller, visit)
                    await self._background.serve(visit, call, turn, perform, share.take)
                else:
                    await self._relayed(call, turn, caller, visit, share)
        except TimeoutError:
            if not visit.responder.is_complete:
                raise self._out_of_time(visit) from None

    async def _read(self, dialect: Dialect, caller: Caller, visit: Visit, share: Share) -> tuple[Call, Turn | None]:
        require_json(visit.request)
        limit_s = self._settings.timeouts.request_body_s
        body = await visit.body(self._settings.max_body_bytes, limit_s, share.take)
        if self._settings.log_prompts:
            visit.record.prompt = body[:LOGGED_PROMPT_BYTES].decode(errors="replace")
        turn = None
        if dialect.remembers and self._memory.serves(caller):
            draft, turn = await self._remembered(dialect, caller, body, share)
        else:
            draft = await self._aside.done(partial(calls.read, dialect, body, caller.rights), len(body))
        visit.responder.announce(*draft.headers())
        visit.record.model = model = self._names.resolve(draft.requested_model)
        visit.record.base_model = self._names.base_of(model)
        bounds.require_allowed(caller, draft.requested_model[:NAME_CHARS_MAX], model)
        abilities.require(dialect, draft.kept, self._names.prompt_format(model))
        default = self._names.default_output_tokens(model)
        size = len(body) + (turn.past.size_bytes if turn else 0)
        limit = self._reservations.default_output_tokens(caller, dialect, model, default, size)
        salt = self._tenants.cache_salt(caller)
        keeper = self._reasoning.of(caller.tenant_id)
        keeper = turn.keeper(keeper) if turn else keeper
        call = await self._aside.done(partial(draft.finish, model, salt, limit, keeper), size)
        # Nothing is kept of a count.
        return call, turn if dialect.is_billed else None

    async def _remembered(self, dialect: Dialect, caller: Caller, body: bytes, share: Share) -> tuple[Draft, Turn]:
        """The draft of a call whose tenant has responses stored, with what was said before put before its input."""
        fields = await self._aside.done(partial(calls.decoded, body), len(body))
        turn = await self._memory.recalled(caller, fields)
        share.take(turn.past.size_bytes)
        size = len(body) + turn.past.size_bytes
        return turn.echoed(await self._aside.done(partial(calls.checked, dialect, fields, caller.rights), size)), turn

    async def _relayed(self, call: Call, turn: Turn | None, caller: Caller, visit: Visit, share: Share) -> None:
        record, responder = visit.record, visit.responder
        sink = self._memory.sink(turn, responder, share.take, is_streamed=call.is_streamed)
        exchange = self._exchange(call, visit, sink, share)
        if call.is_streamed and call.dialect.stream:
            visit.error_event = partial(_error_event, exchange, responder.request_id)
        reserved = self._reservations.held(caller, call, record, made=exchange.made_tokens, answer=visit)
        async with visit.request.cancel_when_client_leaves(responder), reserved:
            with await self._admission.admit(call, record, exchange.keep_alive) as ticket:
                await self._relay.relay(exchange, ticket)

    def _exchange(self, call: Call, visit: Visit, sink: Sink, share: Share) -> Exchange:
        record = visit.record
        record.is_streamed = call.is_streamed
        exchange = Exchange(call, sink, record, visit.trace, visit.clock, share.take)
        if record.batch_id is None:
            # What a line has cost is kept together with its answer.
            exchange.on_end = partial(self._foresee, record)
        return exchange

    async def _performed(self, call: Call, caller: Caller, visit: Visit, stage: Stage) -> None:
        """A call that runs in the background, on the same path as any: with a place of its own among open calls."""
        record = visit.record
        with self._admission.entered(record) as share:
            share.take(len(call.body))
            stage.sink.take_memory = share.take
            exchange = self._exchange(call, visit, stage.sink, share)
            reserved = self._reservations.held(caller, call, record, made=exchange.made_tokens, answer=visit)
            async with reserved:
                await stage.accepted()
                with await self._admission.admit(call, record, exchange.keep_alive) as ticket:
                    await stage.begun()
                    await self._relay.relay(exchange, ticket)

    def _out_of_time(self, visit: Visit) -> ApiError:
        """The fault of a request that used up its time: the client's where it spent most of it not reading."""
        if visit.responder.waited_s > self._settings.timeouts.request_total_s / 2:
            return RequestTimedOut("The answer was not read in time.")
        return EngineTimedOut("The request took too long.")


def _error_event(exchange: Exchange, request_id: str, error: ApiError) -> bytes:
    stream = exchange.call.dialect.stream
    return stream.error_event(error, request_id, exchange.events_passed) if stream else b""
