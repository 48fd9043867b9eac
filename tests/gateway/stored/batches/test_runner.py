"""Runner: batches are run once, whatever happens to the gateway that runs them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.policies import Policy
from serving.gateway.stored.batches.runner import SWEEP_S, rest_of
from serving.gateway.stored.vault import FILE_NAME, fresh_key
from tests.gateway.api.test_batches import ANSWER, content, counts, ended, line, made
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


async def killed_in_the_middle(place: Place, timeout_s: float) -> None:
    """A gateway is killed while lines of its batch are done, at the engine, and to come; another ends the batch."""
    key, gate = key_of(place), asyncio.Event()
    async with ScriptedEngine() as engine:

        def answered(path: str, body: dict[str, object]) -> Script:
            held = None if int(name_of(body)) < FIRST else gate
            return Script([ANSWER], content_type="application/json", gate=held)

        engine.improvise = answered
        ports = free_port(), free_port()
        environment = place.environment()
        async with served(place.home, ports[0], engine.url, **environment) as first:
            calls = b"".join(line(str(number), seed=number) for number in range(LINES))
            async with AsyncOpenAI(base_url=f"http://127.0.0.1:{ports[0]}/v1", api_key=key) as client:
                batch_id = await made(client, calls)
            await until(lambda: place.execute("select count(*) from batch_lines") == [(FIRST,)], timeout_s=60)
            await until(lambda: engine.running > 0, timeout_s=60)
            async with served(place.home, ports[1], engine.url, **environment):
                first.kill()
                await first.wait()
                held_up = {name_of(call.body) for call in engine.received[FIRST:]}
                gate.set()
                async with AsyncOpenAI(base_url=f"http://127.0.0.1:{ports[1]}/v1", api_key=key) as client:
                    # Not oftener: what a gateway logs is not read.
                    batch = await ended(client, batch_id, timeout_s, interval_s=1.0)
                    outputs = await content(client, batch.output_file_id)

                assert (batch.status, counts(batch)) == ("completed", (LINES, LINES, 0))
                assert [it["custom_id"] for it in outputs] == [str(number) for number in range(LINES)]
                asked = Counter(name_of(call.body) for call in engine.received)
                assert {name for name, count in asked.items() if count > 1} == held_up
                assert set(asked.values()) == {1, 2} and len(asked) == LINES
                # Each line is billed once, as its answer says; those that were cut are known as such.
                await until(lambda: place.execute("select count(*) from ledger where outcome = 'open'") == [(0,)], 90)
                said = "select outcome, count(*), sum(completion_tokens) from ledger group by outcome order by outcome"
                rows = {str(row[0]): (row[1], row[2]) for row in place.execute(said)}
                assert rows["ok"] == (LINES, LINES)
                assert rows["gateway_crashed"] == (len(held_up), 0)
                assert set(place.execute("select request_id from ledger where outcome = 'ok'")) == {
                    (it["id"],) for it in outputs
                }


async def test_another_gateway_ends_what_a_killed_one_has_begun(tmp_path: Path) -> None:
    """No line that is done is called again, none is lost, and each is billed once. On one machine the other knows at once."""
    await killed_in_the_middle(SqlitePlace(tmp_path), 60.0)


@pytest.mark.long
async def test_gateways_of_other_machines_notice_within_a_minute(shared: Place) -> None:
    """By the signs of life in the database alone."""
    await killed_in_the_middle(shared, 60.0)


def test_a_gateway_that_is_woken_sweeps_no_later() -> None:
    """Ten minutes after the last time; and where that was missed, at the next look."""
    assert rest_of(swept_at=100.0, now=100.0, least_s=5.0) == SWEEP_S
    assert rest_of(swept_at=100.0, now=100.0 + SWEEP_S - 60, least_s=5.0) == 60
    assert rest_of(swept_at=float("-inf"), now=100.0, least_s=5.0) == 5.0
