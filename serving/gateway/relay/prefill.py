"""Prefill: long prompts are computed by engines of their own, which hand the KV to the engine that decodes (RLY-56).

Whatever goes wrong here costs time and no answer: the engine that decodes computes a prompt that it is not handed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from serving.config import Timeouts
from serving.gateway.dialects.call import Call
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.fleet.router import Candidate, Need
from serving.gateway.fleet.sources import bearer
from serving.gateway.http.connections import ConnectionBroken, NotConnected
from serving.gateway.http.upstream import Upstream
from serving.gateway.nouns import Handover
from serving.gateway.relay import translation
from serving.gateway.relay.exchange import Exchange
from serving.gateway.relay.translation import Blame
from serving.secret import PlaneSecret

#: Prompt tokens yet to be computed from which on a prompt is handed over: a shorter one passes in a step of decoding, at less than
#: the two further requests cost. Set, not measured.
TOKENS_MIN = 256
#: Prefill engines that one attempt of a call asks.
ENGINES_MAX = 2
#: Of the seconds for which an engine may be silent, those that one may take: a minute, a few times what 131,072 tokens take on an H100.
SILENCE_SHARE = 0.2
#: Seconds in which none asks an engine that failed, or took too long: it would hold up every call.
PAUSE_S = 30.0
#: Bytes of its answer that are read: some repeat their request.
ANSWER_BYTES_MAX = 16 * 1024 * 1024

log = logging.getLogger(__name__)


class _Answer(msgspec.Struct):
    """What of an engine's answer matters: where the KV is, in that engine's own words."""

    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"null")


class _Failed(Exception):
    """An engine handed nothing over. Never leaves this module."""

    def __init__(self, *, is_at_fault: bool) -> None:
        super().__init__(is_at_fault)
        self.is_at_fault = is_at_fault


class Prefill:
    """Shared by all calls of a gateway. `fleet` has the engines that compute prompts, and no others."""

    def __init__(
        self,
        fleet: Fleet,
        upstream: Upstream,
        secret: PlaneSecret | None,
        timeouts: Timeouts,
        clock: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._upstream = upstream
        self._secret = secret
        self._keep_alive_s = timeouts.keep_alive_s
        self._answer_s = SILENCE_SHARE * timeouts.engine_silence_s
        self._clock = clock
        #: Engine → when it is asked again, on the clock.
        self._back_at: dict[str, float] = {}

    async def handed_over(self, exchange: Exchange, need: Need, decoder: Candidate) -> bytes:
        """What tells the engine that decodes a call where its prompt's KV is; nothing where it is to compute the prompt itself.

        Meanwhile the client's connection is kept alive.
        """
        if need.prompt_tokens - decoder.cached_tokens < TOKENS_MIN:
            return b""
        call = exchange.call.prompt_alone()
        if call is None:
            return b""
        avoided = self._paused()
        for _ in range(ENGINES_MAX):
            engine = self._fleet.best(call.model, need, avoided)
            if engine is None:
                break
            try:
                with self._fleet.committed(engine.replica_id, need):
                    asking = self._asked(engine, call, exchange)
                    handed = await _patiently(asking, exchange.keep_alive, self._keep_alive_s)
            except _Failed as failed:
                log.warning("request %s: no KV from %s", exchange.request_id, engine.replica_id)
                exchange.count_handover(Handover.FAILED)
                if not failed.is_at_fault:
                    break
                self._back_at[engine.replica_id] = self._clock() + PAUSE_S
                avoided = avoided | {engine.replica_id}
            else:
                exchange.count_handover(Handover.DONE)
                return handed
        return b""

    def _paused(self) -> frozenset[str]:
        now = self._clock()
        self._back_at = {engine: back_at for engine, back_at in self._back_at.items() if now < back_at}
        return frozenset(self._back_at)

    async def _asked(self, engine: Candidate, call: Call, exchange: Exchange) -> bytes:
        """One engine's word for where the KV is; raises _Failed."""
        url = engine.url + call.dialect.path
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **bearer(self._secret)}
        try:
            async with asyncio.timeout(self._answer_s):
                with exchange.trace.attempt(engine.replica_id) as context:
                    sent = {**headers, **context, **exchange.urging()}
                    with await self._upstream.post(url, call.body, sent, None) as reply:
                        # What is wrong with the request the engine that decodes says, in the way that clients get it.
                        is_at_fault = translation.blame(reply.status) is Blame.REPLICA
                        if reply.status != 200:
                            raise _Failed(is_at_fault=is_at_fault)
                        return _transfer(await reply.beginning(ANSWER_BYTES_MAX, self._answer_s))
        except NotConnected:
            self._fleet.report_lost(engine.replica_id)
            raise _Failed(is_at_fault=True) from None
        except (ConnectionBroken, TimeoutError):
            raise _Failed(is_at_fault=True) from None


def _transfer(body: bytes) -> bytes:
    try:
        transfer = bytes(msgspec.json.decode(body, type=_Answer).kv_transfer_params)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _Failed(is_at_fault=True) from None
    if not transfer.startswith(b"{"):
        # An engine without a connector answers as any other.
        raise _Failed(is_at_fault=True)
    return transfer


async def _patiently(
    asking: Coroutine[Any, Any, bytes], keep_alive: Callable[[], Awaitable[None]], interval_s: float
) -> bytes:
    """The end of `asking`; until then `keep_alive` is called every now and then. Cancelled, it takes `asking` with it."""
    task = asyncio.ensure_future(asking)
    try:
        while not (await asyncio.wait({task}, timeout=interval_s))[0]:
            await keep_alive()
        return task.result()
    finally:
        task.cancel()
