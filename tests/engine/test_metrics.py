"""What Prometheus gets of the engine plane: the directory's own figures, and vLLM's under our labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.values import MultiProcessValue

from serving.engine import exposition
from serving.engine.boundary import METRICS_PATH, SECRET_FILE_VARIABLE, Boundary
from serving.engine.directory import EXPIRY_S, Listing
from serving.engine.figures import READ_METRICS, parse_look
from serving.wire import EngineLoad, ReplicaReport, ReplicaState
from tests.clock import Clock
from tests.exposition import value

TOKENS = "vllm:generation_tokens_total"
PAGE = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="m"} 7.0
vllm:request_success_total{model_name="m",engine="0",finished_reason="stop"} 2.0
odd_total{model_name="a \\"b\\", c",text="{x} y"} 1.0
process_cpu_seconds_total 12.5
"""


def report(state: ReplicaState, replica_id: str = "a", **more: Any) -> ReplicaReport:
    return ReplicaReport(replica_id=replica_id, model="m", url="http://127.0.0.1:1", state=state, **more)


def test_every_sample_of_an_engine_carries_our_labels() -> None:
    """Model and replica in place of vLLM's name for the model; its other labels, values and comments stay."""
    page = exposition.relabelled(PAGE, exposition.labels("m", "m-1").encode())
    samples = [it for family in text_string_to_metric_families(page.decode()) for it in family.samples]
    assert len(samples) == 5 and {it.labels["replica"] for it in samples} == {"m-1"}
    assert all("model_name" not in it.labels for it in samples)
    assert value(page, "vllm:num_requests_running", engine="0", model="m") == 3
    assert value(page, "vllm:time_to_first_token_seconds_bucket", le="0.5") == 7
    assert value(page, "odd_total", text="{x} y") == 1 and value(page, "process_cpu_seconds_total", model="m") == 12.5
    assert page.count(b"#") == PAGE.count(b"#")


@pytest.fixture
def scraped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boundary]:
    """A boundary before a vLLM that fails when it is asked, and three metrics of vLLM's in this process."""
    (tmp_path / "secret").write_text("first")
    monkeypatch.setenv(SECRET_FILE_VARIABLE, str(tmp_path / "secret"))
    monkeypatch.setenv(exposition.LABELS_VARIABLE, exposition.labels("m", "m-1"))

    async def vllm(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("vLLM knows no part of its page")

    running = Gauge("vllm:num_requests_running", "Running.", ["model_name", "engine"])
    tokens = Counter("vllm:generation_tokens_total", "Tokens.", ["model_name", "engine"])
    prompts = Histogram("vllm:request_prompt_tokens", "Prompts.", ["model_name", "engine"])
    running.labels("m", "0").set(3)
    tokens.labels("m", "0").inc(7)
    prompts.labels("m", "0").observe(5)
    yield Boundary(vllm)
    for metric in (running, tokens, prompts):
        REGISTRY.unregister(metric)


async def test_a_replica_gets_the_samples_it_asks_for(scraped: Boundary) -> None:
    """By `name[]`, as Prometheus has it: those and no others, under our labels, without a question to vLLM; nothing without
    the secret."""
    query = urlencode([("name[]", name) for name in (*READ_METRICS, "unheard_of")]).encode()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    for value_ in (b"Bearer no", b"Bearer first"):
        scope = {"type": "http", "method": "GET", "path": METRICS_PATH, "query_string": query}
        await scraped(scope | {"headers": [(b"authorization", value_)]}, None, send)  # type: ignore[arg-type]
    assert [message["status"] for message in sent[::2]] == [401, 200]
    page = sent[3]["body"]
    assert dict(sent[2]["headers"])[b"content-length"] == b"%d" % len(page)
    found = {it.name: it.value for family in text_string_to_metric_families(page.decode()) for it in family.samples}
    assert found == {
        "vllm:num_requests_running": 3,
        "vllm:generation_tokens_total": 7,
        "vllm:request_prompt_tokens_sum": 5,
        "vllm:request_prompt_tokens_count": 1,
    }
    assert value(page, "vllm:num_requests_running", engine="0", model="m", replica="m-1") == 3
    assert parse_look(page.decode()).cores[0].calls == 3


def test_several_api_servers_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each writes what it counts into files of its own; a replica gets their sums, and nothing it did not ask for."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for server, requests in enumerate((3, 4)):
        count = MultiProcessValue(lambda server=server: server)  # type: ignore[no-untyped-call]  # as prometheus_client has it
        for name in ("vllm:num_requests_running", "unread"):
            count("gauge", name, name, ["engine"], ["0"], "Help.", multiprocess_mode="livesum").set(requests)
        count("counter", TOKENS.removesuffix("_total"), TOKENS, ["engine"], ["0"], "Help.").inc(5)
    page = exposition.chosen(READ_METRICS).decode()
    found = {it.name: it.value for family in text_string_to_metric_families(page) for it in family.samples}
    assert found == {"vllm:num_requests_running": 7, "vllm:generation_tokens_total": 10}


async def test_the_boundary_rewrites_the_page_on_its_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, with its length, and asked for uncompressed whatever the client would take."""
    (tmp_path / "secret").write_text("first")
    monkeypatch.setenv(SECRET_FILE_VARIABLE, str(tmp_path / "secret"))
    monkeypatch.setitem(os.environ, exposition.LABELS_VARIABLE, exposition.labels("m", "m-1"))
    sent: list[Any] = []

    async def vllm(scope: Any, receive: Any, send: Any) -> None:
        assert b"accept-encoding" not in dict(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(PAGE))]})
        await send({"type": "http.response.body", "body": PAGE[:200], "more_body": True})
        await send({"type": "http.response.body", "body": PAGE[200:]})

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", b"Bearer first"), (b"accept-encoding", b"gzip")]
    scope = {"type": "http", "method": "GET", "path": METRICS_PATH, "headers": headers}
    await Boundary(vllm)(scope, lambda: None, send)  # type: ignore[arg-type, return-value]
    start, body = sent
    assert dict(start["headers"])[b"content-length"] == b"%d" % len(body["body"])
    assert value(body["body"], "vllm:num_requests_running", replica="m-1") == 3


def test_a_start_is_counted_and_its_phases_are_timed() -> None:
    """From state to state; reports that say the same again count nothing; members of one engine are one."""
    clock = Clock()
    listing = Listing("a", "one", clock)
    for state, seconds in ((ReplicaState.STARTING, 3), (ReplicaState.LOADING, 40), (ReplicaState.WARMING, 7)):
        for _ in range(2):
            listing.record(report(state))
            listing.record(report(state, "a-second-node", rank=1))
        clock.advance(seconds)
    listing.record(report(ReplicaState.READY, load=EngineLoad(running_requests=5, kv_cache_used_ratio=0.5)))
    text = listing.metrics()
    phase = "serving_engine_start_phase_seconds_sum"
    assert [value(text, phase, phase=it) for it in ("starting", "loading", "warming")] == [3, 40, 7]
    assert value(text, "serving_engine_starts_total", cell="a", model="m") == 1
    assert value(text, "serving_engine_replicas", model="m", state="ready") == 1
    assert value(text, "serving_engine_running_requests", replica="a") == 5
    assert value(text, "serving_engine_kv_cache_used_ratio", replica="a") == 0.5


def test_failures_are_counted_once_each() -> None:
    """However often a replica says that it failed; a replica that comes back under its name starts anew."""
    clock = Clock()
    listing = Listing("a", "one", clock)
    for replica_id in ("a", "b", "c"):
        listing.record(report(ReplicaState.LOADING, replica_id, node="n", devices=("0",)))
        for _ in range(3):
            listing.record(report(ReplicaState.FAILED, replica_id, node="n", devices=("0",)))
    text = listing.metrics()
    assert value(text, "serving_engine_failures_total", model="m") == 3 == value(text, "serving_engine_starts_total")
    assert value(text, "serving_engine_suspect_devices") == 1
    assert value(text, "serving_engine_ejections_total") == 0
    clock.advance(EXPIRY_S)
    assert value(listing.metrics(), "serving_engine_replicas") == 0


def test_ejections_are_counted_by_cause_and_told_to_the_operator() -> None:
    """An engine that its replica ended is a failure with a cause; its sentence stands for a quarter of an hour."""
    clock = Clock()
    listing = Listing("a", "one", clock)
    for _ in range(3):
        listing.record(report(ReplicaState.FAILED, reason="its EngineCore process is stopped", ejected="wedged"))
    listing.record(report(ReplicaState.FAILED, "b", reason="its engine ended"))
    listing.record(report(ReplicaState.FAILED, "c", reason="of a later release", ejected="haunted"))
    text = listing.metrics()
    assert value(text, "serving_engine_failures_total", model="m") == 3
    assert value(text, "serving_engine_ejections_total", model="m", cause="wedged") == 1
    assert "An engine of m was taken out: its EngineCore process is stopped." in listing.answer().warnings
    clock.advance(900)
    assert listing.answer().warnings == ()
