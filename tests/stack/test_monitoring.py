"""What boards show is what happened: Prometheus scrapes a running stack under a known load, and every query is run.

The load is counted by the client alone, from what it sent and what came back. Levels and totals must be equal; what a
query makes of a rate may differ by `EDGES_SCRAPES`, because Prometheus extrapolates to the edges of its window.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import openai
import pytest

from tests.monitoring.prometheus import Prometheus, as_the_chart, running
from tests.monitoring.queries import EVERYTHING, Query, every
from tests.monitoring.rules import groups
from tests.stack.conftest import SMOLLM2
from tests.stack.running import Stack

#: Seconds of the window that rates are asked over: longer than all that is done here.
WINDOW_S = 300
#: Mean intervals between scrapes by which an increase over it may be off: where series begin half of one is added, and where
#: they end up to 1.1 (`extrapolatedRate` in Prometheus' promql/functions.go).
EDGES_SCRAPES = 1.6
#: So many scrapes after the load that this is less than a tenth.
SCRAPES_AFTER = 15
QUESTION = [{"role": "user", "content": "Count from one to a hundred."}]
QUERIES = every({**EVERYTHING, "__rate_interval": f"{WINDOW_S}s", "__range": f"{WINDOW_S}s"})
#: Boards' panels that show nothing here: Ray's and NVIDIA's own figures, and what only a fault, a start or TLS brings.
EMPTY_HERE = {
    "serving / Alerts / {{alertname}}",
    "serving / Certificates end in / {{certificate}}",
    "autoscaling / Mean length of a start's phases / {{model}} {{phase}}",
    # No issuer, no budget, no guesses; and no call that waits.
    "engines / Guesses that were right / {{model}}",
    "engines / Right guesses a step / {{model}}",
    "serving / Single sign-on / {{issuer}}",
    "tenants / Calls beyond a soft budget / {{tenant}}",
    "path / What became of them / {{outcome}}",
    "path / Wait for a place / {{priority}}",
}
ELSEWHERE = ("ray_serve_", "DCGM_", "serving_gpu:")


@dataclass
class Count:
    """What the client saw."""

    outcomes: Counter[str] = field(default_factory=Counter)
    streams: int = 0
    pieces: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: Seconds from sending to the first piece, summed over streams.
    first_tokens_s: float = 0.0
    #: Seconds from sending to the end, summed over the calls that were served.
    answers_s: float = 0.0


def load(client: openai.OpenAI) -> Count:
    """Streams, whole answers, mistakes; one after another, so that nothing waits."""
    seen = Count()
    for tokens in (8, 24, 40) * 3:
        _stream(client, tokens, seen)
    for _ in range(5):
        began = time.monotonic()
        answer = client.chat.completions.create(model=SMOLLM2, messages=QUESTION, max_tokens=8)
        assert answer.usage is not None
        _count(seen, began, answer.usage.prompt_tokens, answer.usage.completion_tokens)
    for _ in range(4):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=SMOLLM2, messages=QUESTION, temperature=9)
        seen.outcomes["rejected"] += 1
    return seen


def _stream(client: openai.OpenAI, tokens: int, seen: Count) -> None:
    began, first_at = time.monotonic(), 0.0
    chunks = client.chat.completions.create(
        model=SMOLLM2,
        messages=QUESTION,
        max_tokens=tokens,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"min_tokens": tokens},
    )
    usage = None
    for chunk in chunks:
        first_at = first_at or time.monotonic()
        usage = chunk.usage
        seen.pieces += 1
    seen.streams += 1
    seen.first_tokens_s += first_at - began
    assert usage is not None
    _count(seen, began, usage.prompt_tokens, usage.completion_tokens)


def _count(seen: Count, began: float, prompt_tokens: int, completion_tokens: int) -> None:
    seen.outcomes["ok"] += 1
    seen.answers_s += time.monotonic() - began
    seen.prompt_tokens += prompt_tokens
    seen.completion_tokens += completion_tokens


@dataclass
class Watched:
    """A Prometheus that saw the stack before, during and after a load, and what the client counted."""

    prometheus: Prometheus
    before_s: float
    seen: Count

    @property
    def rate_tolerance(self) -> float:
        """Share by which an increase may be more than what was counted."""
        return EDGES_SCRAPES / (self.prometheus.value(f"min(sum_over_time(up[{WINDOW_S}s]))") - 1)

    def grown(self, sample: str, selector: str = "") -> float:
        """By how much a counter grew over the load, summed over its series."""
        expression = f"sum({sample}{{{selector}}}) or vector(0)"
        return self.prometheus.value(expression) - self.prometheus.value(expression, self.before_s)


@pytest.fixture(scope="module")
def watched(stack: Stack, client: openai.OpenAI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    def host(url: str) -> str:
        return urlsplit(url).netloc

    scrapes = as_the_chart(
        gateways={"gateway-0": host(stack.url)},
        directories={"head-0": host(stack.directory_url())},
        engines={"engine-0": host(stack.ready_engine_url())},
        secret=stack.secret,
    )
    with running(tmp_path_factory.mktemp("prometheus"), scrapes, groups()) as prometheus:
        stack.command("prices", "set", SMOLLM2, "--prompt", "0.15", "--completion", "0.6")
        client.models.list()  # there are requests to count from
        prometheus.wait_for_scrapes(3)
        before_s = time.time()
        seen = load(client)
        prometheus.wait_for_scrapes(SCRAPES_AFTER)
        prometheus.wait_for_rules()
        prometheus.freeze_when_steady()
        yield Watched(prometheus, before_s, seen)


def test_counters_are_the_clients_own(watched: Watched) -> None:
    """Requests by outcome, streams, tokens by kind: the gateway's, the tenant's and vLLM's all equal the client's."""
    seen, chat = watched.seen, 'route="/v1/chat/completions"'
    grown = {
        "ok": watched.grown("serving_gateway_requests_total", f'{chat},outcome="ok"'),
        "rejected": watched.grown("serving_gateway_requests_total", f'{chat},outcome="rejected"'),
    }
    assert grown == seen.outcomes
    assert watched.grown("serving_gateway_time_to_first_token_seconds_count") == seen.streams
    assert watched.grown("serving_gateway_time_per_output_token_seconds_count") == seen.streams
    assert watched.grown("serving_gateway_admissions_total", 'decision="admitted"') == seen.outcomes["ok"]
    assert watched.grown("serving_gateway_slo_requests_total") == seen.outcomes["ok"]
    assert watched.grown("vllm:request_success_total") == seen.outcomes["ok"]
    for kind, tokens in (("prompt", seen.prompt_tokens), ("completion", seen.completion_tokens)):
        assert watched.grown("serving_gateway_tokens_total", f'kind="{kind}"') == tokens
        assert watched.grown("serving_gateway_tenant_tokens_total", f'kind="{kind}"') == tokens
    assert watched.grown("vllm:generation_tokens_total") == seen.completion_tokens


def test_times_are_the_clients_but_for_the_way(watched: Watched) -> None:
    """Seconds until the first piece, and until the end, are the client's but for what its own side took."""
    first_s = watched.grown("serving_gateway_time_to_first_token_seconds_sum")
    whole_s = watched.grown("serving_gateway_request_duration_seconds_sum", 'route="/v1/chat/completions"')
    assert 0.2 * watched.seen.first_tokens_s < first_s < watched.seen.first_tokens_s
    assert 0.2 * watched.seen.answers_s < whole_s < 1.1 * watched.seen.answers_s


def test_gaps_are_between_the_pieces(watched: Watched) -> None:
    """No more than there were, and not much fewer: what came in one read is one piece."""
    gaps = watched.grown("serving_gateway_inter_token_seconds_count")
    assert 0.1 * watched.seen.pieces < gaps < watched.seen.pieces


def test_panels_show_what_the_client_counted(watched: Watched) -> None:
    """What boards make of it with rates and increases, within the tolerance."""
    seen = watched.seen
    shown = {
        "overview / Tokens written / completion": seen.completion_tokens,
        "overview / Tokens read / prompt": seen.prompt_tokens,
        "overview / Requests judged by the SLO / {{verdict}}": seen.outcomes["ok"] / WINDOW_S,
        "overview / Goodput / judged": seen.outcomes["ok"] / WINDOW_S,
        "serving / Admissions / {{decision}}": seen.outcomes["ok"] / WINDOW_S,
        "engines / Tokens generated / {{model}} {{replica}}": seen.completion_tokens / WINDOW_S,
        "engines / How requests ended / {{finished_reason}}": seen.outcomes["ok"] / WINDOW_S,
        "tenants / Completion tokens / {{tenant}}": seen.completion_tokens / WINDOW_S,
        "tenants / Tokens by tenant / {{tenant}}": seen.prompt_tokens + seen.completion_tokens,
        "autoscaling / Engines ready and wanted / {{model}} ready": 1,
        "overview / Tenants that called / tenants": 1,
    }
    found = {it.place: sum(sample.value for sample in watched.prometheus.query(it.expression)) for it in QUERIES}
    assert {place: found[place] for place in shown} == pytest.approx(shown, rel=watched.rate_tolerance)


def test_every_query_runs_and_shows_something(watched: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    """Every panel, variable, alert and rule; panels and variables have series, but for those of `EMPTY_HERE`; nothing alerts."""
    series = {it: watched.prometheus.query(it.expression) for it in QUERIES}
    with capsys.disabled():
        kinds = Counter(it.kind for it in QUERIES)
        print(f"\n{len(QUERIES)} queries run: {dict(kinds)}; {sum(map(len, series.values()))} series")
    empty = {it.place for it, found in series.items() if it.kind in ("panel", "variable") and not found}
    assert empty == {it.place for it in QUERIES if _is_elsewhere(it)} | EMPTY_HERE
    assert [it.place for it, found in series.items() if it.kind == "alert" and found] == []


def _is_elsewhere(query: Query) -> bool:
    return query.kind == "panel" and any(name in query.expression for name in ELSEWHERE)
