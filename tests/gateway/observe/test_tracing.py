"""A request's spans, from the client's own trace to the engine; none unless the settings ask for them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serving.gateway.http.asgi import Message, Request
from serving.gateway.observe.tracing import HEADER, STATE_HEADER, SpanTracing, Tracing, over_http
from tests.collector import collecting
from tests.gateway.world import CHAT, World, running_gateway, until
from tests.scripted_engine import MODEL, ScriptedEngine, failing

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED, UNSAMPLED = f"00-{TRACE}-00f067aa0ba902b7-01", f"00-{TRACE}-00f067aa0ba902b7-00"

#: As many members as W3C allows, and more than the 512 characters that must pass.
LONGEST = ",".join(f"v{number}={'x' * 12}" for number in range(32))


async def traced(
    home: Path, *traceparents: str | None, ratio: float = 1.0, fails: int = 0
) -> tuple[list[ReadableSpan], list[str]]:
    """The spans of one call for each of these, and the contexts that the engine received."""
    exporter = InMemorySpanExporter()
    spans = SpanTracing(exporter, ratio)
    async with ScriptedEngine() as engine, running_gateway(home, (engine.url,), tracing=spans) as world:
        engine.say(*(failing(500, "no", "InternalServerError") for _ in range(fails)))
        for traceparent in traceparents:
            await ask(world, traceparent)
        await until(lambda: len(world.lines) == len(traceparents))
        told = [it.headers.get(HEADER, it.headers.get("Traceparent", "")) for it in engine.received]
    await asyncio.to_thread(spans.close)
    return list(exporter.get_finished_spans()), told


async def ask(world: World, traceparent: str | None) -> None:
    headers = world.headers() | {"Content-Type": "application/json"}
    await world.ask("POST", "/v1/chat/completions", CHAT, headers | ({HEADER: traceparent} if traceparent else {}))


def request(traceparent: str | None) -> Request:
    async def nothing_more() -> Message:
        return {"type": "http.disconnect"}

    headers = [(HEADER.encode(), traceparent.encode())] if traceparent else []
    return Request({"method": "POST", "path": "/v1/chat/completions", "headers": headers}, nothing_more)


async def test_a_call_is_a_span_with_one_for_each_engine_it_was_sent_to(tmp_path: Path) -> None:
    """In the client's trace, below the client's span; the engine gets the context of its own; a failed one says so."""
    (first, second, call), told = await traced(tmp_path, SAMPLED, fails=1)
    assert {f"{it.context.trace_id:032x}" for it in (first, second, call) if it.context} == {TRACE}
    assert call.parent is not None and f"{call.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert first.parent == second.parent == call.get_span_context()
    assert (first.status.is_ok, second.status.is_ok, call.status.is_ok) == (False, True, True)
    assert told == [f"00-{TRACE}-{it.context.span_id:016x}-01" for it in (first, second) if it.context]
    attributes = dict(call.attributes or {})
    assert call.name == "POST /v1/chat/completions" and attributes["gen_ai.request.model"] == MODEL
    assert (attributes["serving.tenant"], attributes["serving.retries"]) == ("acme", 1)
    assert "Hello" not in str([it.to_json() for it in (first, second, call)])


async def test_a_client_decides_for_its_own_trace(tmp_path: Path) -> None:
    """What it does not sample is not recorded, what it samples is, whatever our share; the context passes on."""
    spans, told = await traced(tmp_path, UNSAMPLED, SAMPLED, None, ratio=0.0)
    assert len(spans) == 2 and [it[:36] for it in told[:2]] == [f"00-{TRACE}-"] * 2
    assert [int(it[-2:], 16) & 1 for it in told] == [0, 1, 0]  # the sampled bit


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (["vendor=1, other@a=b:c"], "vendor=1,other@a=b:c"),
        (["vendor=1", "other=2"], "vendor=1,other=2"),
        ([LONGEST], LONGEST),
        ([LONGEST + ",more=1"], None),
        (["vendor=1", "no state"], None),
        (["vendor=1,vendor=2"], None),
        ([], None),
    ],
)
@pytest.mark.parametrize("traceparent", [SAMPLED, UNSAMPLED])
async def test_the_clients_tracestate_reaches_the_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, traceparent: str, sent: list[str], told: str | None
) -> None:
    """In one header, however many it came in, and at least 512 characters; what is no state is left out, also of the log,
    and its trace is kept."""
    spans = SpanTracing(InMemorySpanExporter(), 0.0)
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), tracing=spans) as world:
        states = [(STATE_HEADER, state) for state in sent]
        headers = [*world.headers().items(), (HEADER, traceparent), *states]
        async with world.client.post(world.url + "/v1/chat/completions", json=CHAT, headers=headers) as answer:
            assert answer.status == 200
        (received,) = engine.received
    await asyncio.to_thread(spans.close)
    passed_on = {name.lower(): value for name, value in received.headers.items()}
    assert passed_on[HEADER].startswith(f"00-{TRACE}-")
    assert passed_on.get(STATE_HEADER) == told
    assert "no state" not in caplog.text


async def test_a_tracestate_without_a_trace_is_dropped(tmp_path: Path) -> None:
    """W3C: it is not even read then."""
    spans = SpanTracing(InMemorySpanExporter(), 1.0)
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), tracing=spans) as world:
        headers = world.headers() | {STATE_HEADER: "vendor=1"}
        async with world.client.post(world.url + "/v1/chat/completions", json=CHAT, headers=headers) as answer:
            assert answer.status == 200
        (received,) = engine.received
    await asyncio.to_thread(spans.close)
    assert STATE_HEADER not in {name.lower() for name in received.headers}


@pytest.mark.parametrize(
    ("said", "trace_id"),
    [
        (SAMPLED, TRACE),
        (f"01-{TRACE}-00f067aa0ba902b7-01-more", TRACE),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", ""),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", ""),
        ("\n", ""),
        (None, ""),
    ],
)
def test_a_log_line_names_the_clients_trace(said: str | None, trace_id: str) -> None:
    """Without tracing of our own too; a header that is not in W3C's shape names no trace."""
    assert Tracing().begin(request(said)).trace_id == trace_id


async def test_every_line_has_its_trace(tmp_path: Path) -> None:
    """An operator finds the spans from the log, and the log from the spans."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        await ask(world, SAMPLED)
        await until(lambda: world.lines)
    assert world.lines[0]["trace_id"] == TRACE


async def test_spans_reach_a_collector(tmp_path: Path) -> None:
    """Over OTLP/HTTP, protobuf, as every collector takes it."""
    with collecting() as collector:
        spans = over_http(collector.endpoint, 1.0)
        async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), tracing=spans) as world:
            await ask(world, SAMPLED)
            await until(lambda: world.lines)
        await asyncio.to_thread(spans.close)
        assert set(collector.of(TRACE)) == {"POST /v1/chat/completions", "engine"}


def test_without_tracing_its_library_is_not_loaded() -> None:
    """What is off costs nothing, not even at the start."""
    code = "import sys; import serving.gateway.server; print([it for it in sys.modules if 'opentelemetry' in it])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"
