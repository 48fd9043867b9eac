"""Pages: sums add up and never fall; of a gauge the operator sees what says most."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from serving.config import GatewaySettings
from serving.gateway.fleet.fleet import Model
from serving.gateway.nouns import Caller, CallRecord, Outcome, Route
from serving.gateway.observe import pages
from serving.gateway.observe.metrics import Metrics, Snapshot
from serving.gateway.observe.pages import Pages
from serving.wire import ReplicaState

COUNTED = """# HELP calls_total Calls.
# TYPE calls_total counter
calls_total{{model="a"}} {calls}
# HELP took_seconds Seconds.
# TYPE took_seconds histogram
took_seconds_bucket{{le="1.0"}} {calls}
took_seconds_bucket{{le="+Inf"}} {calls}
took_seconds_count {calls}
took_seconds_sum {seconds}
# HELP serving_gateway_open_requests Now.
# TYPE serving_gateway_open_requests gauge
serving_gateway_open_requests {calls}
"""


def series(page: bytes) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(page.decode()):
        for it in family.samples:
            found[it.name + "".join(f" {value}" for value in it.labels.values())] = it.value
    return found


def test_counters_and_histograms_of_workers_are_added() -> None:
    """Bucket by bucket; what only one of them counts is there too."""
    both = Pages()
    both.take(0, "10", COUNTED.format(calls=3.0, seconds=0.5))
    both.take(1, "11", COUNTED.format(calls=4.0, seconds=0.25).replace('"a"', '"b"'))
    seen = series(both.render())
    assert (seen["calls_total a"], seen["calls_total b"]) == (3.0, 4.0)
    assert (seen["took_seconds_bucket 1.0"], seen["took_seconds_count"], seen["took_seconds_sum"]) == (7.0, 7.0, 0.75)
    assert seen["serving_gateway_open_requests"] == 7.0


def test_a_later_page_of_the_same_process_takes_the_place_of_the_earlier() -> None:
    """It has counted on."""
    one = Pages()
    one.take(0, "10", COUNTED.format(calls=3.0, seconds=0.5))
    one.take(0, "10", COUNTED.format(calls=5.0, seconds=0.5))
    assert series(one.render())["calls_total a"] == 5.0


def test_a_worker_that_was_replaced_goes_on_counting() -> None:
    """Its successor begins at 0, and a sum that falls would be a restart to Prometheus. Its gauges are gone with it."""
    two = Pages()
    two.take(0, "10", COUNTED.format(calls=3.0, seconds=0.5))
    two.take(1, "11", COUNTED.format(calls=1.0, seconds=0.5))
    for process in ("12", "13"):
        two.take(0, process, COUNTED.format(calls=2.0, seconds=0.25))
    seen = series(two.render())
    assert (seen["calls_total a"], seen["took_seconds_sum"]) == (3.0 + 2.0 + 2.0 + 1.0, 0.5 + 0.25 + 0.25 + 0.5)
    assert seen["serving_gateway_open_requests"] == 2.0 + 1.0


def snapshot(waiting: int, *, is_up: bool, ends_at_s: float) -> Snapshot:
    model = Model(
        name="a",
        first_seen_s=0,
        context_tokens=0,
        states={ReplicaState.READY: waiting},
        waiting_requests=waiting,
        oldest_wait_s=float(waiting),
        wanted=waiting,
    )
    lags = (float(waiting), float(waiting))
    return Snapshot([model], {"cell": is_up}, {"sso": is_up}, waiting, *lags, is_up, {"api": ends_at_s})


async def page(of: Snapshot) -> str:
    metrics = Metrics(lambda: of, GatewaySettings().slo_of)
    metrics.settle(
        CallRecord(
            request_id="r",
            started_at=0.0,
            ended_at=1.0,
            route=Route("/v1/chat/completions", is_billed=True),
            caller=Caller("t", "tenant", "k"),
            model="a",
            is_model_listed=True,
            outcome=Outcome.OK,
        )
    )
    return (await metrics.render()).decode()


async def test_each_gauge_is_what_says_most() -> None:
    """Shares are added; of lags and waits it is the longest, of what may be down or run out the worse, of replicas no sum."""
    two = Pages()
    two.take(0, "10", await page(snapshot(1, is_up=True, ends_at_s=50.0)))
    two.take(1, "11", await page(snapshot(2, is_up=False, ends_at_s=40.0)))
    seen = {name.removeprefix("serving_gateway_"): value for name, value in series(two.render()).items()}
    assert (seen["waiting_requests a"], seen["ledger_rows_waiting"]) == (3.0, 3.0)
    assert (seen["oldest_wait_seconds a"], seen["ledger_lag_seconds"], seen["audit_lag_seconds"]) == (2.0, 2.0, 2.0)
    assert (seen[f"replicas a {ReplicaState.READY}"], seen["wanted_replicas a"]) == (2.0, 2.0)
    assert (seen["sources_up cell"], seen["issuers_up sso"], seen["store_up"]) == (0, 0, 0)
    assert seen["certificate_expiry_timestamp_seconds api"] == 40.0
    assert (
        seen["tenant_requests_total ok tenant"] == 2.0
        and seen["request_duration_seconds_count a /v1/chat/completions"] == 2.0
    )


async def test_every_gauge_has_a_rule() -> None:
    """A new one is added, taken least or taken most because someone has thought of it."""
    text = await page(snapshot(1, is_up=True, ends_at_s=50.0))
    gauges = {it.name for it in text_string_to_metric_families(text) if it.type == "gauge"}
    rules = (pages.SHARED, pages.LEAST, pages.MOST)
    assert gauges == frozenset().union(*rules)
    assert sum(map(len, rules)) == len(gauges)
