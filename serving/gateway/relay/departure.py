"""Departure: when must a call leave its replica before the replica has answered it? What its cell says of the replica decides.

A failed one is left at once. One that drains is left only where the settings say so, by streams that can go on elsewhere, spread
over a few seconds: each of them is a prefill there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from serving.gateway.nouns import Failure
from serving.gateway.relay.exchange import Exchange
from serving.wire import ReplicaState

#: Seconds over which the streams of a draining replica leave it.
SPREAD_S = 5.0


class Departure:
    """Of one attempt, which `async with` encloses; `why` says why it ended early, once it has."""

    def __init__(
        self,
        exchange: Exchange,
        *,
        hands_on: bool,
        is_another_ready: Callable[[], bool],
        random_: Callable[[], float] = random.random,
    ) -> None:
        self._exchange = exchange
        self._hands_on = hands_on
        self._is_another_ready = is_another_ready
        self._random = random_
        self._limit = asyncio.timeout(None)
        self._leaving: asyncio.TimerHandle | None = None
        self.why: Failure | None = None
        #: Its engine has made nothing for too long.
        self.is_silent = False

    async def __aenter__(self) -> Self:
        await self._limit.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
        # It raises TimeoutError when it has run out.
        await self._limit.__aexit__(kind, error, traceback)

    @property
    def is_due(self) -> bool:
        """The attempt was ended from here."""
        return self._limit.expired()

    def look(self, state: ReplicaState | None) -> None:
        """What the cell says of the replica now; None where it does not list it."""
        exchange = self._exchange
        if exchange.has_all:
            return
        if state is ReplicaState.FAILED or (state is None and not exchange.has_content):
            self._leave(Failure.EJECTED)
        elif state is ReplicaState.DRAINING and self._hands_on and self._leaving is None and self._can_go_on():
            loop = asyncio.get_running_loop()
            self._leaving = loop.call_later(self._random() * SPREAD_S, self._hand_on)

    def _can_go_on(self) -> bool:
        return self._exchange.has_content and self._exchange.can_move and self._is_another_ready()

    def _hand_on(self) -> None:
        self._leaving = None
        if not self._exchange.has_all and self._can_go_on():
            self._leave(Failure.DRAINED)

    def silence(self) -> None:
        """The engine has made nothing for too long: ends the attempt, unless the client has some of its answer, or it is left already."""
        if self.why is None and not self._exchange.has_content:
            self.is_silent = True
            self._end()

    def _leave(self, why: Failure) -> None:
        self.why = self.why or why
        self._end()

    def _end(self) -> None:
        # It may have been left already.
        with suppress(RuntimeError):
            self._limit.reschedule(asyncio.get_running_loop().time())
