"""Sources: directories and lone engines as places where replicas are learned of; silence says nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import aiohttp
import pytest
from aiohttp import web

from serving.gateway.fleet.sources import ANSWER_BYTES_MAX, DirectorySource, EngineSource, Silence, bearer
from serving.secret import PlaneSecret
from serving.wire import LIVENESS_ROUTE, GatewayReport, ReplicaState, Traffic
from tests.gateway.fleet.directory import Directory
from tests.gateway.fleet.reports import answer, report
from tests.scripted_engine import MODEL, ScriptedEngine

REPORT = GatewayReport("gateway", 1.0, {"m": Traffic(waiting_requests=2)})
#: No server has this port.
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_a_directory_is_told_and_says_what_it_lists(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """It gets the demand seen here and the plane secret, and is called by its cell from then on."""
    (tmp_path / "secret").write_text("s3cret\n")
    async with Directory() as directory:
        directory.says = answer(report("1"), cell="a/serving-a-x7k2p")
        source = DirectorySource(directory.url + "/", PlaneSecret(tmp_path / "secret"), "directory-0")
        assert source.label == "directory-0"
        assert await source.ask(session, REPORT) == directory.says
    assert source.label == "a" and directory.reports == [REPORT] and directory.authorizations == {"Bearer s3cret"}


@pytest.mark.parametrize("says", [None, b"", b"{", b"{}", b'{"cell":"\xff"}', b"[]"])
async def test_what_is_no_answer_is_silence(session: aiohttp.ClientSession, says: bytes | None) -> None:
    """An error, half a document, another one: none of it is taken for an empty cell."""
    async with Directory() as directory:
        directory.says = says
        with pytest.raises(Silence):
            await DirectorySource(directory.url, None, "d").ask(session, REPORT)


async def test_a_directory_that_is_not_there_is_silence(session: aiohttp.ClientSession) -> None:
    """After as many connections as one poll may try."""
    with pytest.raises(Silence, match="ClientConnectorError"):
        await DirectorySource(NOWHERE, None, "d").ask(session, REPORT)


async def test_an_engine_is_a_cell_of_its_own(session: aiohttp.ClientSession) -> None:
    """Its health and its list of models stand in for a directory, and the answer is complete."""
    async with ScriptedEngine() as engine:
        said = await EngineSource(engine.url + "/", None, "engine-0").ask(session, REPORT)
    (listed,) = said.replicas
    assert (said.cell, said.is_complete) == (engine.url, True)
    assert (listed.report.model, listed.report.url, listed.report.state) == (MODEL, engine.url, ReplicaState.READY)
    assert listed.report.context_tokens == 4096


async def test_an_engine_that_was_seen_and_is_gone_has_failed(session: aiohttp.ClientSession) -> None:
    """Its models are known and not ready; so are those of one that is not healthy."""
    async with ScriptedEngine() as engine:
        source = EngineSource(engine.url, None, "engine-0")
        await source.ask(session, REPORT)
        engine.is_healthy = False
        states = [it.report.state for it in (await source.ask(session, REPORT)).replicas]
    states += [it.report.state for it in (await source.ask(session, REPORT)).replicas]
    assert states == [ReplicaState.FAILED] * 2


async def test_an_engine_never_seen_is_silence(session: aiohttp.ClientSession) -> None:
    """Which models it would serve is not known."""
    with pytest.raises(Silence):
        await EngineSource(NOWHERE, None, "engine-0").ask(session, REPORT)


def test_no_secret_is_no_header(tmp_path: Path) -> None:
    """Engines outside this plane may ask for none."""
    (tmp_path / "secret").write_text("new\nold\n")
    assert bearer(None) == {} and bearer(PlaneSecret(tmp_path / "secret")) == {"Authorization": "Bearer new"}


class Wrong:
    """A server that redirects, or goes on for ever, at every path."""

    def __init__(self, location: str | None = None) -> None:
        self.location = location
        self.url = ""
        self.bytes_sent = 0
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == LIVENESS_ROUTE[1]:
            return web.Response()
        if self.location:
            raise web.HTTPTemporaryRedirect(self.location)
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"[" * 1024 * 1024)
            self.bytes_sent += 1024 * 1024


@pytest.mark.parametrize("kind", [DirectorySource, EngineSource])
async def test_an_endless_answer_is_read_to_a_bound(
    session: aiohttp.ClientSession, kind: type[DirectorySource | EngineSource]
) -> None:
    """A source cannot fill a gateway's memory; the reason is for the log."""
    async with Wrong() as server:
        with pytest.raises(Silence, match=f"more than {ANSWER_BYTES_MAX} bytes"):
            await kind(server.url, None, "d").ask(session, REPORT)
    assert server.bytes_sent < 16 * ANSWER_BYTES_MAX


@pytest.mark.parametrize("kind", [DirectorySource, EngineSource])
async def test_no_source_leads_elsewhere(
    session: aiohttp.ClientSession, kind: type[DirectorySource | EngineSource]
) -> None:
    """A redirect is not followed: the plane secret and the demand are for that address alone."""
    async with ScriptedEngine() as engine, Directory() as directory:
        directory.says = answer(report("1"), cell="a")
        target = directory.url + "/directory" if kind is DirectorySource else engine.url + "/v1/models"
        async with Wrong(target) as server:
            with pytest.raises(Silence, match="status 307"):
                await kind(server.url, None, "d").ask(session, REPORT)
    assert directory.reports == []


async def test_a_nested_answer_is_silence(session: aiohttp.ClientSession) -> None:
    """However deep: no source can end the polls of the others."""
    async with Directory() as directory:
        directory.says = b'{"cell":' + b"[" * 100_000
        with pytest.raises(Silence, match="another shape"):
            await DirectorySource(directory.url, None, "d").ask(session, REPORT)
