"""Polls: asks every source what it serves, tells it the demand seen here, and logs what changes."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence

import aiohttp

from serving.gateway.fleet.demand import Demands, Reading, shared
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.fleet.sources import Silence, Source
from serving.wire import DirectoryAnswer, GatewayReport, ListedModel, Traffic

#: Seconds a poll may take; a directory answers in milliseconds.
POLL_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


class Polls:
    """Keeps a fleet current while `run` runs."""

    def __init__(
        self, sources: Sequence[Source], fleet: Fleet, demands: Demands, interval_s: float, clock: Callable[[], float]
    ) -> None:
        self._sources = sources
        self._fleet = fleet
        self._demands = demands
        self._interval_s = interval_s
        self._clock = clock
        self._gateway_id = uuid.uuid4().hex
        #: Sources that answered the last poll, and those that did not; in neither before their first.
        self._up: set[str] = set()
        self._silent: set[str] = set()
        #: Cell → what its directory warns of.
        self._warnings: dict[str, frozenset[str]] = {}

    def sources_up(self) -> dict[str, bool]:
        """Source → did it answer the last poll?"""
        return {source.label: source.name in self._up for source in self._sources}

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Poll every source until cancelled."""
        async with asyncio.TaskGroup() as polls:
            for source in self._sources:
                polls.create_task(self._follow(source, session))

    async def _follow(self, source: Source, session: aiohttp.ClientSession) -> None:
        reported = self._demands.read()
        known = ""
        while True:
            asked_at, reporting = self._clock(), self._demands.read()
            traffic = self._traffic(reported, reporting)
            try:
                async with asyncio.timeout(POLL_TIMEOUT_S):
                    report = GatewayReport(
                        self._gateway_id,
                        reporting.read_at - reported.read_at,
                        traffic,
                        # Without calls only a change matters, and the directory says it as soon as there is one.
                        known="" if any(map(_is_any, traffic.values())) else known,
                    )
                    answer = await source.ask(session, report)
            except TimeoutError:
                known = ""
                self._log_silence(source, f"nothing within {POLL_TIMEOUT_S:g} s")
            except Silence as silence:
                known = ""
                self._log_silence(source, str(silence))
            else:
                reported, known = reporting, answer.news
                self._up.add(source.name)
                self._silent.discard(source.name)
                self.take(answer, asked_at, source.name)
            await asyncio.sleep(self._interval_s)

    def take(self, answer: DirectoryAnswer, asked_at: float, source: str = "") -> None:
        """Hand an answer to the fleet and log what is new in it."""
        self._log_wanted(answer)
        self._fleet.take(answer, asked_at, source)
        self._log_warnings(answer)

    def _traffic(self, reported: Reading, reporting: Reading) -> dict[str, Traffic]:
        cells = self._fleet.cells_serving()
        return {name: shared(seen, cells[name]) for name, seen in self._demands.since(reported, reporting).items()}

    def _log_silence(self, source: Source, reason: str) -> None:
        """Log it when it begins: at every poll would be noise."""
        if source.name not in self._silent:
            log.warning("no answer from %s (%s); its replicas stay as they were", source.name, reason)
        self._silent.add(source.name)
        self._up.discard(source.name)

    def _log_wanted(self, answer: DirectoryAnswer) -> None:
        """Log how many engines a cell wants of a model, and what they wait for, whenever either changes."""
        before = self._fleet.listed(answer.cell)
        for model in answer.models:
            known = before.get(model.name, ListedModel(model.name))
            if model.wanted is not None and known.wanted != model.wanted:
                log.info("%s wants %d engines of %s: %s", answer.cell, model.wanted, model.name, model.reason)
            if model.shortage and known.shortage != model.shortage:
                log.warning("%s, model %s: %s", answer.cell, model.name, model.shortage)

    def _log_warnings(self, answer: DirectoryAnswer) -> None:
        """Log a directory's warnings when they begin and when they end.

        A directory that has just started has lost its warnings, so only a complete answer ends any.
        """
        before, now = self._warnings.get(answer.cell, frozenset()), frozenset(answer.warnings)
        for warning in sorted(now - before):
            log.warning("%s warns: %s", answer.cell, warning)
        if answer.is_complete:
            for warning in sorted(before - now):
                log.info("%s no longer warns: %s", answer.cell, warning)
        self._warnings[answer.cell] = now if answer.is_complete else now | before


def _is_any(traffic: Traffic) -> bool:
    return traffic.waiting_requests > 0 or traffic.arrived_prompt_tokens > 0 or traffic.line_requests > 0
