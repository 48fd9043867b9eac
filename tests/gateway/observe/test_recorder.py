"""Recorder: every request is settled once, and everything that shows it shows the same figures."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serving.config import GatewaySettings
from serving.errors import ApiError, EngineFailed, GatewayFull, InternalError, InvalidRequest, Unauthenticated
from serving.gateway.dialects.chat import CHAT
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.ledger.prices import Price, Prices
from serving.gateway.nouns import CallRecord, ClientLeft, Outcome, Usage
from serving.gateway.observe.activity import Activity
from serving.gateway.observe.metrics import Metrics, Snapshot
from serving.gateway.observe.recorder import Recorder, Written, outcome_of, reason_of, status_of
from serving.gateway.observe.tracing import SpanTracing, Trace
from serving.gateway.store.store import Store
from tests.clock import Clock
from tests.exposition import value
from tests.gateway.calls import CALLER, CHAT_ROUTE, record, rows
from tests.gateway.places import SqlitePlace
from tests.gateway.world import CHAT as BODY
from tests.gateway.world import running_gateway, until
from tests.scripted_engine import MODEL, Ending, Script, ScriptedEngine, chat_stream


class Answer:
    """How far an answer has got."""

    def __init__(self, status: int | None = None, waited_s: float = 0.0) -> None:
        self.status = status
        self.waited_s = waited_s


ENDS: list[tuple[BaseException | None, int | None, tuple[Outcome, str, int]]] = [
    (None, 200, (Outcome.OK, "", 200)),
    (InvalidRequest("Bad."), 400, (Outcome.REJECTED, "invalid_request_error", 400)),
    (Unauthenticated("No."), 401, (Outcome.REJECTED, "invalid_api_key", 401)),
    (GatewayFull("Full."), 503, (Outcome.FAILED, "overloaded", 503)),
    (EngineFailed("It broke."), None, (Outcome.FAILED, "engine_failed", 502)),
    (EngineFailed("It broke."), 200, (Outcome.FAILED, "engine_failed", 200)),
    (ClientLeft(), None, (Outcome.DISCONNECTED, "", 499)),
    (ClientLeft(), 200, (Outcome.DISCONNECTED, "", 499)),
    (asyncio.CancelledError(), None, (Outcome.CANCELLED, "", 503)),
    (asyncio.CancelledError(), 200, (Outcome.CANCELLED, "", 200)),
    (ZeroDivisionError("a prompt"), None, (Outcome.FAILED, "internal_error", 500)),
    (ZeroDivisionError("a prompt"), 200, (Outcome.FAILED, "internal_error", 200)),
]


@pytest.mark.parametrize(("error", "sent", "ended"), ENDS, ids=lambda it: type(it).__name__)
def test_how_a_request_ended_follows_from_its_error_and_what_was_sent(
    error: BaseException | None, sent: int | None, ended: tuple[Outcome, str, int]
) -> None:
    """The status is what the client saw, or would have seen; 499 stands for a client that left."""
    assert (outcome_of(error), reason_of(error), status_of(error, sent)) == ended


def every_error(root: type[ApiError] = ApiError) -> list[type[ApiError]]:
    return [root, *(lower for child in root.__subclasses__() for lower in every_error(child))]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
def test_every_error_has_a_reason_and_an_outcome(error: type[ApiError]) -> None:
    """Below 500 it was the client's mistake; its reason is a code or a type of ours, never a text."""
    raised = error.__new__(error)
    assert outcome_of(raised) is (Outcome.REJECTED if error.status < 500 else Outcome.FAILED)
    assert reason_of(raised) in {error.code, error.type} - {None}


class Shown:
    """Whatever a recorder shows of a request."""

    def __init__(self, home: Path) -> None:
        self.clock = Clock()
        self.lines: list[CallRecord] = []
        self.ended: list[CallRecord] = []
        self.audited: list[CallRecord] = []
        self.metrics = Metrics(Snapshot, GatewaySettings().slo_of)
        self.store = Store.open(home)
        self.ledger = Ledger(self.store, clock=self.clock)
        lists = {"m"}.__contains__
        self.prices = Prices({"m": Price(1_000_000, 0, 3_000_000)})
        self.activity = Activity(GatewaySettings().slo_of, self.clock)
        self.recorder = Recorder(
            self.ledger,
            self.metrics,
            self.lines.append,
            lists,
            self.prices.of,
            self.clock,
            self.audited.append,
            self.activity,
        )

    def settle(self, record: CallRecord, answer: Written, error: BaseException | None) -> None:
        self.recorder.settle(record, answer, _Kept(self.ended), error)
        self.ledger.stop()


class _Kept(Trace):
    def __init__(self, ended: list[CallRecord]) -> None:
        super().__init__()
        self._ended = ended

    def end(self, record: CallRecord) -> None:
        self._ended.append(record)


def call(clock: Clock, model: str = "m") -> CallRecord:
    return CallRecord(request_id="r", started_at=clock.now, route=CHAT_ROUTE, caller=CALLER, model=model)


@pytest.mark.parametrize("error", [None, ClientLeft(), InvalidRequest("Bad."), ZeroDivisionError()])
def test_a_record_is_frozen_before_it_is_shown(tmp_path: Path, error: BaseException | None) -> None:
    """On every way out: the line, the span and the rest see the same, and nothing can change it between two of them."""
    shown = Shown(tmp_path)
    one = call(shown.clock)
    shown.clock.advance(2)
    shown.settle(one, Answer(200, waited_s=0.5), error)
    assert shown.lines == shown.ended == [one] and one.is_frozen
    assert (one.duration_s, one.reading_s, one.served_s) == (2.0, 0.5, 1.5)
    with pytest.raises(AttributeError, match="the call is over"):
        one.usage = Usage(1, 1)


@pytest.mark.parametrize(("model", "is_listed"), [("m", True), ("invented", False)])
def test_only_a_listed_model_labels_a_metric(tmp_path: Path, model: str, is_listed: bool) -> None:
    """Whether it is one is asked when the call is over, and kept in its record."""
    shown = Shown(tmp_path)
    one = call(shown.clock, model)
    shown.settle(one, Answer(200), None)
    assert one.is_model_listed is is_listed


@pytest.mark.parametrize(
    ("model", "base", "micros"), [("m", None, 13), ("adapter", "m", 13), ("adapter", None, None), (None, None, None)]
)
def test_a_call_has_its_price_when_it_is_shown(
    tmp_path: Path, model: str | None, base: str | None, micros: int | None
) -> None:
    """By the prices of the moment it ends, an adapter's by its model's; without a price it has none."""
    shown = Shown(tmp_path)
    one = record(model=model, base_model=base, usage=Usage(10, 4, 9), entry_id="e", opened_at_epoch_s=1.0)
    shown.settle(one, Answer(200), None)
    assert one.price_micros == micros
    assert rows(SqlitePlace(tmp_path), "price_micros") == [(micros,)]


def test_a_request_that_opened_no_row_leaves_none(tmp_path: Path) -> None:
    """A stranger, a probe, a path that is not there: a line and a count, and nothing to bill."""
    shown = Shown(tmp_path)
    closed, opened = call(shown.clock), call(shown.clock)
    shown.recorder.settle(closed, Answer(401), Trace(), Unauthenticated("No."))
    shown.ledger.open(opened)
    shown.settle(opened, Answer(200), None)
    assert rows(SqlitePlace(tmp_path)) == [("r", "ok", 200)] and len(shown.lines) == 2


async def test_open_requests_are_those_inside(tmp_path: Path) -> None:
    """Whatever they end in."""
    shown = Shown(tmp_path)
    with shown.recorder.open_request():
        assert value(await shown.metrics.render(), "serving_gateway_open_requests") == 1
    with pytest.raises(ZeroDivisionError), shown.recorder.open_request():
        raise ZeroDivisionError
    assert value(await shown.metrics.render(), "serving_gateway_open_requests") == 0
    shown.ledger.stop()


@pytest.mark.parametrize("ends", ["whole", "streamed", "cut"])
async def test_row_line_metrics_and_span_agree(tmp_path: Path, ends: str) -> None:
    """One call, one set of figures: exact ones of an answer that ended, and one estimate of an answer that was cut."""
    exporter = InMemorySpanExporter()
    spans = SpanTracing(exporter, 1.0)
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), tracing=spans) as world:
        if ends == "cut":
            engine.say(Script(ending=Ending.HANG, content_type="application/json"))
            asking = asyncio.create_task(world.chat(max_tokens=3))
            await until(lambda: engine.running == 1)
            asking.cancel()
        else:
            await world.chat(stream=ends == "streamed")
        row = await world.row()
        await until(lambda: world.lines)
        (line,) = world.lines
        text = (await world.ask("GET", "/metrics")).body
    await asyncio.to_thread(spans.close)
    (span,) = (it for it in exporter.get_finished_spans() if it.name == f"POST {CHAT.path}")
    said, usage = dict(span.attributes or {}), line["usage"]
    assert usage == {name: row[name] for name in Usage.__struct_fields__}
    for kind, tokens in (("prompt", row["prompt_tokens"]), ("completion", row["completion_tokens"])):
        assert value(text, "serving_gateway_tokens_total", model=MODEL, kind=kind) == tokens
        assert value(text, "serving_gateway_tenant_tokens_total", tenant="acme", kind=kind) == tokens
    spoken = (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"])
    assert spoken == (row["prompt_tokens"], row["completion_tokens"]) and row["prompt_tokens"]
    assert row["request_id"] == line["request_id"] == said["serving.request_id"]
    assert row["outcome"] == line["outcome"] == said["serving.outcome"]
    assert row["status"] == line["status"] == said["http.response.status_code"]
    assert row["model"] == line["model"] == said["gen_ai.request.model"] == MODEL
    assert (row["replica_id"], row["key_id"]) == (line["replica_id"], line["key_id"])
    assert (row["estimated_by"] == "bytes_sent_time_elapsed") is (ends == "cut")


async def test_a_call_in_order_is_decided_and_any_other_is_not(tmp_path: Path) -> None:
    """A body that was refused, or a model that is unknown, asked for no engine: no decision is counted."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(Script(chat_stream(["Hi"])))
        await world.chat(stream=True)
        await world.chat(temperature="hot")
        await world.chat(model="unknown")
        await world.ask("POST", CHAT.path, BODY, {"Authorization": "Bearer sk-no"})
        text = (await world.ask("GET", "/metrics")).body
    assert value(text, "serving_gateway_admissions_total", decision="admitted", model=MODEL) == 1
    assert value(text, "serving_gateway_admissions_total") == 1


def test_the_reason_of_a_bug_is_a_code(tmp_path: Path) -> None:
    """Never its text: that may quote a prompt."""
    shown = Shown(tmp_path)
    one = call(shown.clock)
    shown.ledger.open(one)
    shown.settle(one, Answer(), ZeroDivisionError("a prompt"))
    assert (one.reason, one.status) == (InternalError.code, 500)
    assert b"a prompt" not in msgspec.json.encode([one.reason, one.model, one.request_id])
    assert rows(SqlitePlace(tmp_path)) == [("r", "error", 500)]
