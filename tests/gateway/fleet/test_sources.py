"""Sources: directories and lone engines as places where replicas are learned of; silence says nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from serving.gateway.fleet.sources import DirectorySource, EngineSource, Silence, bearer
from serving.secret import PlaneSecret
from serving.wire import GatewayReport, ReplicaState, Traffic
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
