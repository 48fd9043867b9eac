"""What the gateway counts is what happened, under labels whose number is bounded."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import Metric, generate_latest
from prometheus_client.registry import Collector

from serving.config import GatewaySettings, Slo, Timeouts
from serving.gateway.nouns import Caller, InterTokenLatency, Outcome, Usage
from serving.gateway.observe.metrics import GROUP, OTHER_TENANTS, TENANTS_MAX, TURN_S, Metrics, Snapshot
from serving.gateway.observe.slo import Verdict
from tests.clock import Clock
from tests.exposition import value
from tests.gateway.calls import record
from tests.gateway.world import CHAT, QUICK, World, running_gateway, until
from tests.scripted_engine import MODEL, Ending, Script, ScriptedEngine, chat_chunk, chat_stream, failing

SLO = Slo(ttft_s=1, time_per_output_token_s=0.1)


def metrics() -> Metrics:
    return Metrics(Snapshot, GatewaySettings(slo=SLO).slo_of)


async def test_tenants_beyond_the_bound_share_one_series() -> None:
    """No number of tenants makes the page grow without end, and what all of them used is still counted."""
    counted = metrics()
    for number in range(TENANTS_MAX + 10):
        counted.settle(record(caller=Caller("t", f"t{number}", "k"), usage=Usage(1, 2)))
    text = await counted.render()
    assert value(text, "serving_gateway_tenant_tokens_total", kind="completion") == 2 * (TENANTS_MAX + 10)
    assert value(text, "serving_gateway_tenant_requests_total", tenant=OTHER_TENANTS) == 10
    assert text.count(b"serving_gateway_tenant_requests_total{") == TENANTS_MAX + 1


def test_requests_are_counted_without_a_scrape() -> None:
    """Records that wait to be counted do not pile up where no Prometheus scrapes."""
    counted = metrics()
    for _ in range(GROUP):
        counted.settle(record())
    assert value(generate_latest(counted.registry), "serving_gateway_requests_total") == GROUP


async def test_the_event_loop_waits_for_the_page_in_short_turns() -> None:
    """Its thread gives the interpreter up after half a millisecond, also where two pages are asked for at once; then all is as before."""
    counted, before, during = metrics(), sys.getswitchinterval(), set()

    class Watch(Collector):
        def collect(self) -> Iterator[Metric]:
            during.add(sys.getswitchinterval())
            return iter(())

    counted.registry.register(Watch())
    during.clear()
    await asyncio.gather(counted.render(), counted.render())
    assert [round(it, 6) for it in during] == [TURN_S]
    assert sys.getswitchinterval() == before > TURN_S


async def test_a_thousand_tenants_fit_one_megabyte() -> None:
    """Each with calls that ended well, badly and by the client, and tokens of both kinds, over ten models."""
    counted = metrics()
    for number in range(TENANTS_MAX):
        for outcome in Outcome:
            caller = Caller("t", f"tenant-{number:04}", "k")
            model = f"model-{number % 10}"
            streamed = {"is_streamed": True, "first_byte_at": 0.1, "inter_token": InterTokenLatency()}
            usage = Usage(1000, 100)
            counted.settle(record(caller=caller, model=model, outcome=outcome, usage=usage, **streamed))
    assert len(await counted.render()) < 1_000_000


async def test_money_is_counted_by_tenant() -> None:
    """In the currency; calls beyond a soft budget apart. A tenant without prices has no series."""
    counted = metrics()
    for micros, is_over in ((1_500_000, False), (250_000, True), (None, False)):
        one = record(price_micros=micros)
        one.is_over_soft_budget = is_over
        counted.settle(one)
    text = await counted.render()
    assert value(text, "serving_gateway_tenant_cost_total", tenant="acme") == 1.75
    assert value(text, "serving_gateway_tenant_over_soft_budget_total", tenant="acme") == 1


async def text_of(world: World) -> bytes:
    return (await world.ask("GET", "/metrics", headers={})).body


async def test_a_stream_is_counted_piece_by_piece(tmp_path: Path, engine: ScriptedEngine) -> None:
    """Bytes as the client got them, one gap less than pieces, its wait of nothing, its verdict, its tenant's tokens."""
    async with running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(chat_stream(["a", "b", "c", "d"])))
        answer = await world.chat(stream=True)
        text = await text_of(world)
    assert value(text, "serving_gateway_relayed_bytes_total", model=MODEL) == len(answer.body)
    assert 1 <= value(text, "serving_gateway_inter_token_seconds_count", model=MODEL) <= 6
    assert value(text, "serving_gateway_waiting_seconds_bucket", model=MODEL, le="0.001") == 1
    assert value(text, "serving_gateway_admissions_total", model=MODEL, decision="admitted") == 1
    assert value(text, "serving_gateway_slo_requests_total", model=MODEL, verdict="met") == 1
    assert value(text, "serving_gateway_tenant_tokens_total", tenant="acme", kind="completion") == value(
        text, "serving_gateway_tokens_total", model=MODEL, kind="completion"
    )
    assert value(text, "serving_gateway_time_per_output_token_seconds_count", model=MODEL) == 1


async def test_what_goes_wrong_is_counted_by_its_reason(tmp_path: Path, engine: ScriptedEngine) -> None:
    """An engine's failures, by kind; the call they end, by the error's code and as an SLO that was missed."""
    async with running_gateway(tmp_path, (engine.url,)) as world:
        for _ in range(4):
            engine.say(failing(500, "no", "InternalServerError"))
        answer = await world.chat()
        await world.chat(temperature="hot")
        text = await text_of(world)
    assert answer.status == 502
    assert value(text, "serving_gateway_upstream_retries_total", failure="errored") == 3
    assert value(text, "serving_gateway_requests_total", model=MODEL, reason="engine_failed", outcome="error") == 1
    assert value(text, "serving_gateway_requests_total", outcome="rejected", reason="invalid_request_error") == 1
    assert value(text, "serving_gateway_slo_requests_total", verdict="failed") == 1
    assert value(text, "serving_gateway_slo_requests_total") == 1


async def test_calls_that_no_engine_takes_are_refused_and_counted(tmp_path: Path, engine: ScriptedEngine) -> None:
    """An engine that refuses connections is lost and no longer ready; a call that then waits in vain is refused by the wait."""
    brief = Timeouts(**QUICK.model_dump() | {"replica_wait_s": 0.2})
    # The call must find the refused connection before a poll does.
    async with running_gateway(tmp_path, (engine.url,), timeouts=brief, poll_interval_s=2.0) as world:
        await engine.stop()
        answer = await world.chat()
        text = await text_of(world)
    assert answer.status == 503
    assert value(text, "serving_gateway_replicas_lost_total", model=MODEL) >= 1
    assert value(text, "serving_gateway_admissions_total", model=MODEL, decision="refused_wait") == 1
    assert value(text, "serving_gateway_waiting_seconds_count", model=MODEL) == 1
    assert value(text, "serving_gateway_replicas", model=MODEL, state="failed") == 1


async def test_what_we_refuse_before_an_engine_is_asked_misses_the_slo(tmp_path: Path, engine: ScriptedEngine) -> None:
    """A gateway that is full, or whose store is away, is no reason to call a day a good one; a wrong key is the client's."""
    async with running_gateway(tmp_path, (engine.url,), max_open_requests=1) as world:
        engine.say(Script(ending=Ending.HANG))
        held = await world.client.post(
            world.url + "/v1/chat/completions", json=CHAT | {"stream": True}, headers=world.headers()
        )
        await until(lambda: engine.running == 1)
        refused = await world.chat()
        wrong = await world.ask("POST", "/v1/chat/completions", CHAT, {"Authorization": "Bearer sk-no"})
        held.close()
        text = await text_of(world)
    assert (refused.status, wrong.status) == (503, 503)  # full is said before a key is looked at
    assert value(text, "serving_gateway_slo_requests_total", verdict="failed") == 2
    assert value(text, "serving_gateway_admissions_total", decision="refused_full") == 2


#: Seconds that a slow one takes, by the gateway's clock: twice what is promised.
SLOW_S = 2 * SLO.ttft_s
#: Real seconds too, and so many that writes wait for the client before they are over.
UNREAD_S = 3.0
#: More than the sockets on the way hold, so that writes wait for a client that does not read.
LONG = Script([chat_chunk({"content": "x" * 60_000}, 7, 1)] * 100 + chat_stream(["a", "b"])[-2:])


async def line_and_verdicts(world: World) -> tuple[dict[str, object], dict[str, float]]:
    """Of the only call, once it is over."""
    await until(lambda: any(it["model"] for it in world.lines))
    text = await text_of(world)
    counts = {it: value(text, "serving_gateway_slo_requests_total", verdict=it) for it in Verdict}
    line = next(it for it in world.lines if it["model"])
    return line, {verdict: count for verdict, count in counts.items() if count}


async def unread(world: World) -> aiohttp.ClientResponse:
    """A stream whose reader has stopped, so that the gateway's writes wait for it."""
    url, body = world.url + "/v1/chat/completions", CHAT | {"stream": True}
    response = await world.client.post(url, json=body, headers=world.headers())
    await until(lambda: world.write_waits % 2)
    return response


async def test_a_client_that_sends_slowly_does_not_miss_the_slo(tmp_path: Path, engine: ScriptedEngine) -> None:
    """Its body's time is no part of that to the first byte, nor of the whole; its line tells it."""
    clock, body = Clock(), json.dumps(CHAT | {"stream": True}).encode()
    async with running_gateway(tmp_path, (engine.url,), slo=SLO, clock=clock) as world:

        async def slowly() -> AsyncIterator[bytes]:
            yield body[:20]
            await until(world.rows)  # opened when the caller is known, before the rest of the body is awaited
            clock.advance(SLOW_S)
            yield body[20:]

        headers = world.headers() | {"Content-Type": "application/json"}
        async with world.client.post(world.url + "/v1/chat/completions", data=slowly(), headers=headers) as answer:
            await answer.read()
        line, verdicts = await line_and_verdicts(world)
    assert verdicts == {Verdict.MET: 1}
    assert (line["duration_s"], line["client_s"], line["ttft_s"]) == (SLOW_S, SLOW_S, 0)


async def test_a_client_that_reads_slowly_does_not_miss_the_slo(tmp_path: Path, engine: ScriptedEngine) -> None:
    """What is ready for it and lies there was not served slowly."""
    clock = Clock()
    async with running_gateway(tmp_path, (engine.url,), slo=SLO, clock=clock) as world:
        engine.say(LONG)
        response = await unread(world)
        clock.advance(SLOW_S)
        await response.read()
        line, verdicts = await line_and_verdicts(world)
    assert verdicts == {Verdict.MET: 1}
    assert (line["duration_s"], line["client_s"]) == (SLOW_S, SLOW_S)


async def test_a_client_that_does_not_read_until_its_time_is_over_is_cut_off(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    """Its connection is closed; ledger and log call it the client's mistake, and no SLO is missed."""
    clock, brief = Clock(), Timeouts(**QUICK.model_dump() | {"request_total_s": UNREAD_S})
    async with running_gateway(tmp_path, (engine.url,), slo=SLO, clock=clock, timeouts=brief) as world:
        engine.say(LONG)
        response = await unread(world)
        clock.advance(UNREAD_S)
        await until(lambda: not world.connections)
        with pytest.raises(aiohttp.ClientError):
            await response.read()
        line, verdicts = await line_and_verdicts(world)
        (row,) = world.rows()
    assert (line["outcome"], line["reason"], line["status"], verdicts) == ("rejected", "request_timeout", 200, {})
    assert (row["outcome"], row["status"]) == ("rejected", 200)


async def test_a_piece_counts_from_when_the_last_one_was_taken(tmp_path: Path, engine: ScriptedEngine) -> None:
    """While a client does not read, no gap between tokens grows."""
    clock = Clock()
    async with running_gateway(tmp_path, (engine.url,), clock=clock) as world:
        engine.say(LONG)
        response = await unread(world)
        clock.advance(SLOW_S)
        await response.read()
        text = await text_of(world)
    assert value(text, "serving_gateway_inter_token_seconds_count", model=MODEL) > 0
    assert value(text, "serving_gateway_inter_token_seconds_sum", model=MODEL) == 0


async def test_an_engine_that_is_slow_misses_the_slo(tmp_path: Path, engine: ScriptedEngine) -> None:
    """A client that sends and reads without delay waits only for us."""
    clock, gate = Clock(), asyncio.Event()
    async with running_gateway(tmp_path, (engine.url,), slo=SLO, clock=clock) as world:
        engine.say(Script(chat_stream(["a", "b"]), gate=gate))
        asked = asyncio.create_task(world.chat(stream=True))
        await until(lambda: engine.running)
        clock.advance(SLOW_S)
        gate.set()
        await asked
        line, verdicts = await line_and_verdicts(world)
    assert verdicts == {Verdict.SLOW_FIRST_TOKEN: 1}
    assert (line["duration_s"], line["client_s"], line["ttft_s"]) == (SLOW_S, 0, SLOW_S)
