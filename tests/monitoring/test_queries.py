"""Queries: a real Prometheus runs every one of them, and what boards show is what was exported."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from metrics_catalog import catalog
from tests.monitoring.catalog import exposition
from tests.monitoring.prometheus import FULLNAME, NAMESPACE, Json, Prometheus, Refused, as_the_chart, running
from tests.monitoring.queries import Query, every, filled_in, grouped_by, selectors
from tests.monitoring.rules import groups, recorded

QUERIES = every()
#: Where each plane's figures are served here, and under which labels they are scraped.
PATHS = {
    "/metrics": ("gateway",),
    "/directory/metrics": ("directory",),
    "/vllm": ("vllm", "vllm_guessing"),
    "/ray": ("ray",),
    "/dcgm": ("dcgm",),
}
#: Labels that scraping adds, and those of series that the rules record.
SCRAPED = {"namespace", "pod", "service", "job", "instance", "exported_namespace", "le", "release"}


@contextmanager
def exporter() -> Iterator[str]:
    """host:port of a server that has every metric of the catalogue; counters grow by the same at each scrape."""
    scrapes = dict.fromkeys(PATHS, 0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            scrapes[self.path] += 1
            body = "".join(exposition(catalog().plane(it), scrapes[self.path]) for it in PATHS[self.path]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: pytest's output is for failures."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that has scraped every metric a few times, and evaluated the chart's rules on them."""
    with exporter() as address:
        scrapes = [
            *as_the_chart(gateways={"g-0": address}, directories={"h-0": address}),
            _scrape(address, "/vllm", job=f"{NAMESPACE}/{FULLNAME}-engine", pod="e-0"),
            _scrape(address, "/ray", job=f"{NAMESPACE}/{FULLNAME}-ray", pod="h-0"),
            _scrape(address, "/dcgm", job="dcgm-exporter", exported_namespace=NAMESPACE),
        ]
        with running(tmp_path_factory.mktemp("prometheus"), scrapes, groups()) as server:
            server.wait_for_scrapes(4)
            server.wait_for_rules()
            server.freeze_when_steady()
            yield server


@pytest.mark.parametrize("query", QUERIES, ids=lambda it: f"{it.kind} {it.place}")
def test_asks_for_metrics_that_exist(query: Query) -> None:
    """Every metric, every label that is matched or grouped by, and every value it is compared with is in the catalogue."""
    known, ours = catalog().by_sample(), recorded()
    asked = selectors(query.expression)
    allowed = SCRAPED | {"alertname", "severity"}

    assert asked or query.expression.startswith("vector(")
    for metric, matchers in asked:
        if metric in ours or metric == "ALERTS":
            allowed |= {label for it in catalog().metrics for label in it.labels}
            continue
        assert metric in known, f"{metric} is not in deploy/metrics.yaml"
        allowed |= known[metric].labels.keys()
        for label, operator, text in matchers:
            assert label in known[metric].labels.keys() | SCRAPED, f"{metric} has no label {label}"
            values = known[metric].labels.get(label)
            if values and text != ".*":
                assert set(text.split("|")) <= set(values), f"{label}{operator}{text!r} of {metric}"
    assert grouped_by(query.expression) <= allowed


@pytest.mark.parametrize("query", QUERIES, ids=lambda it: f"{it.kind} {it.place}")
def test_prometheus_runs_it(query: Query, prometheus: Prometheus) -> None:
    """Where every metric is there, every panel and variable shows something and every recording rule records.

    Alerts may be silent; they are run all the same.
    """
    samples = prometheus.query(query.expression)

    if query.kind != "alert" and "ALERTS" not in query.expression:
        assert samples
        assert all(it.value == it.value for it in samples), "not a number"


def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    """Prometheus reports none of the chart's rules as broken, their templates included, and all of them were run."""
    assert len(prometheus.rules()) == sum(len(group["rules"]) for group in groups())
    for alert in (alert for rule in prometheus.rules() for alert in rule.get("alerts", [])):
        assert "error expanding template" not in alert["annotations"]["summary"], alert


#: Panels whose value follows from how the exporter grows: `met` by 1, `slow_first_token` by 2, `slow_tokens` by 3, `failed`
#: by 4, in each scrape; outcomes, kinds and decisions likewise, in the order of the catalogue.
SHOWN = {
    "overview / Requests within the SLO / within the SLO": 1 / 10,
    "overview / Failed by us / failed": 3 / 15,
    "overview / Tenants that called / tenants": 1,
    "tenants / Prompt tokens found in cache / {{model}}": 3 / 1,
    "path / Calls that had to wait / {{model}}": 14 / 15,
    # All observations are between 0.2 and 0.4: half of them, as histogram_quantile sees it, below 0.3.
    "serving / Time to first token / half": 0.3,
    "serving / Between tokens / 99 of 100": 0.2 + 0.2 * 0.99,
    "path / First token, at the engine and at the gateway / engine": 0.2 + 0.2 * 0.95,
    # 90 % miss an objective of 99 %.
    "serving / How fast the error budget burns / {{model}} over 5m": 0.9 / 0.01,
    "serving / Requests held / {{pod}}": 1,
    "autoscaling / Requests of an engine / {{model}}": 2,
    "engines / Last Xid and double-bit ECC errors / {{Hostname}} GPU {{gpu}}: Xid": 1,
}


@pytest.mark.parametrize("place", SHOWN)
def test_boards_show_what_was_exported(place: str, prometheus: Prometheus) -> None:
    """Shares, quantiles and levels are those that the exporter's growth makes."""
    (query,) = [it for it in QUERIES if it.place == place]

    assert prometheus.value(query.expression) == pytest.approx(SHOWN[place], rel=1e-6)


def test_what_is_no_query_is_refused(prometheus: Prometheus) -> None:
    """Prometheus' own words say why."""
    with pytest.raises(Refused, match=r"parse error.*sum by"):
        prometheus.query("sum by (model (up)")


def test_an_unknown_variable_is_no_query() -> None:
    """A board that asks for a variable nobody sets fails here, not as an empty panel."""
    with pytest.raises(KeyError):
        filled_in('up{zone="$zone"}', {"namespace": NAMESPACE})


def test_what_an_expression_asks_for() -> None:
    """Names without braces, label lists, functions, durations and strings are told apart."""
    expression = (
        'sum by (model) (rate(a_total{x="b{}",y=~"c|d"}[5m])) / on (model) group_left (cell) max_over_time(e:f[1h:5m])'
        " and g_h > 0 unless i_j offset 1h or vector(1)"
    )

    assert selectors('rate(a{x="b",y=~"c|d"}[5m])')[0].matchers == (("x", "=", "b"), ("y", "=~", "c|d"))
    assert {it.metric for it in selectors(expression.replace("b{}", "b"))} == {"a_total", "e:f", "g_h", "i_j"}
    assert grouped_by(expression) == {"model", "cell"}


def _scrape(address: str, path: str, job: str, **labels: str) -> Json:
    targets = [{"targets": [address], "labels": {"namespace": NAMESPACE, **labels}}]
    return {"job_name": job, "metrics_path": path, "static_configs": targets}
