"""Assembly: settings become one application, and nothing happens before it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from serving.config import GatewaySettings, Issuer
from serving.gateway.admission.counters.counter import Draw, Verdict
from serving.gateway.admission.counters.tally import Change, TallyUnavailable, Unseeded
from serving.gateway.api.health import ALONE
from serving.gateway.assembly import Assembled, Edges, assemble
from serving.gateway.audit.audit import Audit
from serving.gateway.audit.checkpoints import Signer
from serving.gateway.dialects import DIALECTS
from serving.gateway.http.asgi import Message
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.tenants import Tenants
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import CallRecord
from serving.gateway.policies import Policy
from serving.gateway.store.store import Store
from tests.clock import Clock
from tests.exposition import value
from tests.gateway.asgi import Wire
from tests.gateway.world import running_gateway
from tests.scripted_engine import ScriptedEngine

#: No server has this port.
NOWHERE = "http://127.0.0.1:1"


class Parts:
    """What is open before the application is made."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.tenants = Tenants(store, Keyring.open(store), key_cache_s=10, lookup_timeout_s=10, clock=Clock())
        self.ledger = Ledger(store, clock=Clock())
        self.audit = Audit(store, Signer(bytes(32)), clock=Clock())
        self.lines: list[CallRecord] = []

    def assembled(self, settings: GatewaySettings, **edges: object) -> Assembled:
        return assemble(
            settings,
            self.store,
            self.tenants,
            self.ledger,
            self.audit,
            Edges(write_access=self.lines.append, **edges),  # type: ignore[arg-type]
        )


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    with Store.open(tmp_path) as store:
        parts = Parts(store)
        with parts.tenants:
            yield parts


class _Away:
    """Shared counters that never answer."""

    async def reserve(self, lease: str, draws: Sequence[Draw]) -> Verdict | Unseeded:
        raise TallyUnavailable("away")

    async def seed(self, window: Draw, value: int, *, is_late: bool) -> None:
        raise TallyUnavailable("away")

    async def apply(self, changes: Sequence[Change]) -> None:
        raise TallyUnavailable("away")

    async def probe(self) -> None:
        raise TallyUnavailable("away")

    async def tidy(self) -> None:
        raise TallyUnavailable("away")

    async def close(self) -> None:
        """There is nothing to close."""


async def asked(app: object, path: str, method: str = "GET") -> Wire:
    wire = Wire()
    await app(wire.scope(method, path), wire.receive, wire.send)  # type: ignore[operator]
    return wire


async def test_every_dialect_is_a_route_and_so_are_models_health_and_metrics(parts: Parts) -> None:
    """Each path answers with something other than 404; its record carries its route and whether it is billed."""
    app = parts.assembled(GatewaySettings()).gateway
    for path in (
        *DIALECTS,
        "/v1/models",
        "/v1/models/m",
        "/",
        "/health",
        "/health/live",
        "/health/ready",
        "/health/models",
        "/metrics",
    ):
        assert (await asked(app, path, "PUT")).status == 405
    billed = {line.route.label for line in parts.lines if line.route.is_billed}
    assert billed == {path for path, dialect in DIALECTS.items() if dialect.is_billed}
    assert (await asked(app, "/nothing")).status == 404 and parts.lines[-1].route.label == "other"


async def test_metrics_on_a_port_of_their_own_are_not_beside_the_api(parts: Parts) -> None:
    """Clients that reach the API cannot read tenants' names there."""
    assembled = parts.assembled(GatewaySettings(metrics_port=9090))
    assert (await asked(assembled.gateway, "/metrics")).status == 404
    assert (await asked(assembled.metrics_page, "/metrics")).status == 200


@pytest.mark.parametrize(("metrics_port", "without_key"), [(None, 503), (9090, 401)])
async def test_the_states_of_models_are_for_those_who_may_see_metrics(
    parts: Parts, metrics_port: int | None, without_key: int
) -> None:
    """On the port of the metrics, and on the API's with a key; where both share a port (laptops), without one too."""
    assembled = parts.assembled(GatewaySettings(metrics_port=metrics_port))
    assert (await asked(assembled.gateway, "/health/models")).status == without_key
    assert (await asked(assembled.metrics_page, "/health/models")).status == 503
    for path in ("/health", "/health/live", "/health/ready", "/"):
        assert (await asked(assembled.gateway, path)).status in (200, 503)


async def test_sources_are_those_of_the_settings(parts: Parts) -> None:
    """Directories, engines and issuers, none of them up before it has answered; certificates as `expiries` gives them."""
    issuer = Issuer(issuer=NOWHERE, audiences=("llm",), tenant="acme")
    settings = GatewaySettings(directories=(NOWHERE, NOWHERE + "/b"), engines=(NOWHERE,), oidc=(issuer,))
    page = (await asked(parts.assembled(settings, expiries=lambda: {"api": 5.0}).metrics_page, "/metrics")).body
    for source in ("directory-0", "directory-1", "engine-0"):
        assert f'serving_gateway_sources_up{{source="{source}"}} 0.0'.encode() in page
    assert value(page, "serving_gateway_issuers_up", issuer=NOWHERE) == 0.0
    assert value(page, "serving_gateway_certificate_expiry_timestamp_seconds", certificate="api") == 5.0


async def test_a_gateway_takes_requests_between_the_start_and_the_end_of_its_lifespan(parts: Parts) -> None:
    """Before and after it says that it is stopping."""
    app = parts.assembled(GatewaySettings(engines=(NOWHERE,))).gateway
    assert (await asked(app, "/health/ready")).status == 503
    messages: asyncio.Queue[Message] = asyncio.Queue()
    sent: asyncio.Queue[Message] = asyncio.Queue()
    messages.put_nowait({"type": "lifespan.startup"})
    lives = asyncio.create_task(app({"type": "lifespan"}, messages.get, sent.put))
    assert (await sent.get())["type"] == "lifespan.startup.complete"
    assert (await asked(app, "/health/ready")).status == 200
    messages.put_nowait({"type": "lifespan.shutdown"})
    assert (await sent.get())["type"] == "lifespan.shutdown.complete"
    await lives
    assert (await asked(app, "/health/ready")).status == 503


async def test_a_gateway_that_counts_its_share_says_so(tmp_path: Path) -> None:
    """It answers and is ready while the shared counters are away, in detail and in metrics."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,), tally=_Away()) as world:
        await world.bound(Policy(requests_per_minute=10))
        assert (await world.ask("GET", "/health/ready")).json == {"status": "ok"}
        assert value((await world.ask("GET", "/metrics")).body, "serving_gateway_counters_up") == 1
        assert (await world.chat()).status == 200
        ready = await world.ask("GET", "/health/ready")
        page = (await world.ask("GET", "/metrics")).body
    assert (ready.status, ready.json) == (200, {"status": "ok", "limits": ALONE})
    assert value(page, "serving_gateway_counters_up") == 0
    assert value(page, "serving_gateway_counters_alone_decisions_total") == 1
