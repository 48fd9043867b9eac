"""The metrics page: beside the API, or alone on a port of its own."""

from __future__ import annotations

from serving.config import GatewaySettings
from serving.gateway.api.health import State
from serving.gateway.api.metrics import CONTENT_TYPE, PROCESS_HEADER, MetricsPage
from serving.gateway.observe.metrics import Metrics, Snapshot
from tests.gateway.asgi import Wire
from tests.gateway.world import World
from tests.scripted_engine import MODEL


async def test_metrics_count_what_happened_with_bounded_labels(world: World) -> None:
    """Requests, tokens and replicas are counted by route and served model; a client cannot invent labels."""
    await world.chat(stream=True)
    await world.chat(model="made-up-by-a-client")
    await world.post("/made/up/by/a/client", {})
    text = (await world.ask("GET", "/metrics", headers={})).body.decode()
    assert f'_requests_total{{model="{MODEL}",outcome="ok",reason="",route="/v1/chat/completions"}} 1.0' in text
    refused = '_requests_total{model="unknown",outcome="rejected",reason="unknown_url",route="other"} 1.0'
    assert refused in text
    assert f'serving_gateway_tokens_total{{kind="completion",model="{MODEL}"}} 2.0' in text
    assert f'serving_gateway_replicas{{model="{MODEL}",state="ready"}} 1.0' in text
    assert "made-up" not in text and "made/up" not in text


async def test_a_port_of_its_own_has_the_page_and_the_models_and_nothing_else() -> None:
    """No probe, no API, no other method."""
    page = MetricsPage(Metrics(Snapshot, GatewaySettings().slo_of), lambda: (503, State("x")), list)
    for method, path, status in (("GET", "/metrics", 200), ("POST", "/metrics", 404), ("GET", "/v1/models", 404)):
        wire = Wire()
        await page(wire.scope(method, path), wire.receive, wire.send)
        assert wire.status == status and (b"serving_gateway_build_info" in wire.body) is (status == 200)
        assert wire.headers[b"content-type"] == (CONTENT_TYPE if status == 200 else b"application/json")
    wire = Wire()
    await page(wire.scope("GET", "/health/models"), wire.receive, wire.send)
    assert (wire.status, wire.body) == (503, b'{"status":"x"}')
    wire = Wire()
    await page(wire.scope("GET", "/activity"), wire.receive, wire.send)
    assert (wire.status, wire.body) == (200, b"[]")


async def test_a_page_names_its_process_by_chance() -> None:
    """Two of them are told apart, also where the second got the number of the first; the number itself is not shown."""
    names = []
    for _ in range(2):
        page, wire = MetricsPage(Metrics(Snapshot, GatewaySettings().slo_of), lambda: (503, State("x")), list), Wire()
        await page(wire.scope("GET", "/metrics"), wire.receive, wire.send)
        names.append(wire.headers[PROCESS_HEADER.encode()])
    assert names[0] != names[1]


async def test_beside_the_api_it_needs_no_key(world: World) -> None:
    """Prometheus has none; the type of the page is the one it expects."""
    answer = await world.ask("GET", "/metrics", headers={})
    assert (answer.status, answer.headers["content-type"]) == (200, CONTENT_TYPE.decode())
