"""Runner: batches are run once, whatever happens to the gateway that runs them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.policies import Policy
from serving.gateway.stored.batches.runner import SWEEP_S, rest_of
from serving.gateway.stored.batches.spare import CAREFUL_LINES
from serving.gateway.stored.vault import FILE_NAME, fresh_key
from tests.gateway.api.test_batches import ANSWER, CHAT, content, counts, ended, line
from tests.gateway.places import Place, SqlitePlace
from tests.gateway.test_server import free_port, served
from tests.gateway.world import until
from tests.scripted_engine import Script, ScriptedEngine

LINES = 24
#: Lines that are answered before the others are held up.
FIRST = 8


def key_of(place: Place) -> str:
    """A key of a tenant that stores."""
    path = place.home / FILE_NAME
    if not path.exists():
        path.write_text(f"{fresh_key()}\n")
    with place.open() as store:
        registry = Registry(store, Keyring.open(store), time.time)
        registry.create_tenant("acme")
        registry.update_tenant("acme", policy=Policy(store_responses=True))
        return registry.create_key("acme", name="night")


def name_of(body: dict[str, object]) -> str:
    """The line that a call is for."""
    return str(body["seed"])


class Night:
    """A batch of `LINES` lines at a gateway that will be killed; its first lines are answered at once, the others once `gate` is open."""

    def __init__(self, place: Place, engine: ScriptedEngine, port: int, key: str) -> None:
        self.place = place
        self.engine = engine
        self.gate = asyncio.Event()
        self.client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key)
        self.folder = place.home / "files"
        self.batch_id = ""
        engine.improvise = self._answered

    def _answered(self, path: str, body: dict[str, object]) -> Script:
        held = None if int(name_of(body)) < FIRST else self.gate
        return Script([ANSWER], content_type="application/json", gate=held)

    async def upload(self, *, is_one_bad: bool = False) -> str:
        warmth = {LINES - 1: -1} if is_one_bad else {}
        calls = b"".join(line(str(it), seed=it, temperature=warmth.get(it, 1)) for it in range(LINES))
        file = await self.client.files.create(file=("in.jsonl", calls), purpose="batch")
        return str(file.id)

    async def begin(self, file_id: str) -> None:
        batch = await self.client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
        self.batch_id = batch.id

    def said(self, what: str) -> tuple[object, ...]:
        """Columns of the batch, past the gateways."""
        (row,) = self.place.execute(f"select {what} from batches")  # noqa: S608 Our own words.
        return row

    async def until_held_up(self) -> None:
        """The first lines are done, and as many others as may are at the engine."""
        await until(lambda: self.place.execute("select count(*) from batch_lines") == [(FIRST,)], timeout_s=60)
        await until(lambda: self.engine.running == CAREFUL_LINES, timeout_s=60)


#: Brings a batch to a moment at which its gateway is killed; returns what lets it go on.
Moment = Callable[[Night], Awaitable[Callable[[], object]]]


async def checking(night: Night) -> Callable[[], object]:
    """Its file has been begun to be read: a piece of it is not there."""
    file_id = await night.upload()
    piece, away = night.folder / file_id / "00000000", night.folder / "away"
    piece.rename(away)
    await night.begin(file_id)
    await until(lambda: night.said("status, owner is null") in (("validating", 0), ("validating", False)), timeout_s=60)
    return lambda: away.rename(piece)


async def running(night: Night) -> Callable[[], object]:
    """Lines are done, at the engine, and to come."""
    await night.begin(await night.upload())
    await night.until_held_up()
    return night.gate.set


async def finalizing(night: Night) -> Callable[[], object]:
    """The output file is written, and the error file is not, because there is something else where it belongs."""
    await night.begin(await night.upload(is_one_bad=True))
    await until(lambda: night.engine.running > 0, timeout_s=60)
    output, errors = (night.folder / str(it) for it in night.said("output_file_id, error_file_id"))
    errors.write_bytes(b"")
    night.gate.set()
    await until(lambda: night.said("status") == ("finalizing",) and (output / "00000000").exists(), timeout_s=60)
    return errors.unlink


async def cancelling(night: Night) -> Callable[[], object]:
    """It is cancelled, and lines are still at the engine."""
    await night.begin(await night.upload())
    await night.until_held_up()
    assert (await night.client.batches.cancel(night.batch_id)).status == "cancelling"
    return night.gate.set


async def killed(
    place: Place, moment: Moment, *, workers: int = 1, counted: tuple[str, int, int] = ("completed", LINES, 0)
) -> None:
    """A gateway is killed at a moment of its batch, or the worker that has it; another ends the batch."""
    key, ports = key_of(place), (free_port(), free_port())
    environment = place.environment() | {"SERVING_GATEWAY__WORKERS": str(workers)}
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(ScriptedEngine())
        first = await stack.enter_async_context(served(place.home, ports[0], engine.url, **environment))
        night = Night(place, engine, ports[0], key)
        go_on = await moment(night)
        held_up = {name_of(call.body) for call in engine.received if int(name_of(call.body)) >= FIRST}
        if workers == 1:
            await stack.enter_async_context(served(place.home, ports[1], engine.url, **environment))
            first.kill()
            await first.wait()
        else:
            os.kill(int(str(night.said("owner")[0]).split(":")[1]), signal.SIGKILL)
        await night.client.close()
        go_on()
        night = Night(place, engine, ports[1 if workers == 1 else 0], key)
        night.gate.set()
        async with night.client as client:
            (batch_id,) = night.said("id")
            # Not oftener: what a gateway logs is not read.
            batch = await ended(client, str(batch_id), 90.0, interval_s=1.0)
            outputs = await content(client, batch.output_file_id)
            errors = await content(client, batch.error_file_id) if batch.error_file_id else []

        assert (batch.status, *counts(batch)[1:]) == counted
        assert [it["custom_id"] for it in outputs] == [str(number) for number in range(len(outputs))]
        assert [it["custom_id"] for it in errors] == [str(number) for number in range(len(outputs), LINES)]
        # What was cut is called again, unless the batch is cancelled; what was answered is not.
        asked = Counter(name_of(call.body) for call in engine.received)
        assert {name for name, count in asked.items() if count > 1} == (held_up if moment is running else set())
        assert set(asked.values()) <= {1, 2}
        # Each line is billed once, as its answer says; those that were cut are known as such.
        await until(lambda: place.execute("select count(*) from ledger where outcome = 'open'") == [(0,)], 90)
        assert set(place.execute("select request_id from ledger where outcome = 'ok'")) == {
            (it["id"],) for it in outputs
        }
        assert batch.usage is not None
        assert place.execute("select sum(completion_tokens) from ledger") == [(batch.usage.output_tokens,)]
        assert batch.usage.output_tokens == len(outputs)
        cut = place.execute("select count(*) from ledger where outcome = 'gateway_crashed'")
        assert cut == [(len(held_up) if moment in (running, cancelling) else 0,)]


async def test_another_gateway_ends_what_a_killed_one_has_begun(tmp_path: Path) -> None:
    """No line that is done is called again, none is lost, and each is billed once. On one machine the other knows at once."""
    await killed(SqlitePlace(tmp_path), running)


@pytest.mark.long
@pytest.mark.parametrize(
    ("moment", "counted"),
    [
        (checking, ("completed", LINES, 0)),
        (running, ("completed", LINES, 0)),
        (finalizing, ("completed", LINES - 1, 1)),
        (cancelling, ("cancelled", FIRST, LINES - FIRST)),
    ],
    ids=["checking", "running", "finalizing", "cancelling"],
)
async def test_a_gateway_may_be_killed_at_any_moment_of_a_batch(
    place: Place, moment: Moment, counted: tuple[str, int, int]
) -> None:
    """In either database; in PostgreSQL the other notices by the signs of life alone, within a minute."""
    await killed(place, moment, counted=counted)


@pytest.mark.long
async def test_a_worker_may_be_killed_that_runs_a_batch(place: Place) -> None:
    """The others of its gateway, or the one that takes its place, go on."""
    await killed(place, running, workers=2)


def test_a_gateway_that_is_woken_sweeps_no_later() -> None:
    """Ten minutes after the last time; and where that was missed, at the next look."""
    assert rest_of(swept_at=100.0, now=100.0, least_s=5.0) == SWEEP_S
    assert rest_of(swept_at=100.0, now=100.0 + SWEEP_S - 60, least_s=5.0) == 60
    assert rest_of(swept_at=float("-inf"), now=100.0, least_s=5.0) == 5.0
