"""Panels that stand on more than one board."""

from __future__ import annotations

from boards.grafana import Panel
from boards.promql import MODEL, once, rate, spread, total

SLO = "serving_gateway_slo_requests_total"

REQUESTS = Panel(
    "Requests by outcome",
    "reqps",
    "`error` is ours: see the errors by reason. `rejected` are the clients' (bad keys, unknown models, bad bodies). If all "
    "outcomes drop to zero at once, clients no longer reach the gateways.",
    {"{{outcome}}": rate("serving_gateway_requests_total", "outcome")},
    is_stacked=True,
    leads_to="serving",
)
VERDICTS = Panel(
    "Requests judged by the SLO",
    "reqps",
    "Everything but `met` missed it. `slow_first_token`: look at what waits. `slow_tokens`: look at the engines' batches. "
    "`failed`: look at the errors.",
    {"{{verdict}}": rate(SLO, "verdict")},
    is_stacked=True,
    leads_to="path",
)
TOKENS = Panel(
    "Tokens",
    "short",
    "Billed a second. Cached prompt tokens are part of the prompt tokens: if only they fall, prompts have changed at "
    "their beginning, and engines compute more for the same answers.",
    {"{{kind}} a second": rate("serving_gateway_tokens_total", "kind")},
    leads_to="tenants",
)
REPLICAS = Panel(
    "Engines ready and wanted",
    "short",
    "Ready below wanted for longer than a cold start: the board autoscaling shows what the others wait for.",
    {
        "{{model}} ready": once("serving_gateway_replicas", "model", MODEL + ',state="ready"'),
        "{{model}} wanted": once("serving_gateway_wanted_replicas", "model"),
    },
    leads_to="autoscaling",
)
WAITING = Panel(
    "Calls that wait for an engine",
    "short",
    "Above zero for minutes: too few engines, or a cold start from zero. At max_waiting_requests the next call is refused.",
    {"{{model}}": total("serving_gateway_waiting_requests", "model")},
    leads_to="autoscaling",
)
OLDEST = Panel(
    "Longest wait for an engine",
    "s",
    "At gateway.timeouts.replica_wait_s (wake_wait_s for a model that wakes) the call gets 503.",
    {"{{model}}": once("serving_gateway_oldest_wait_seconds", "model")},
    leads_to="autoscaling",
)
FIRST_TOKEN = Panel(
    "Time to first token",
    "s",
    "Of streams, from a call's arrival. The board path divides it into waiting, the engine's queue and the prompt.",
    spread("serving_gateway_time_to_first_token_seconds"),
    leads_to="path",
)
GAPS = Panel(
    "Between tokens",
    "s",
    "Grows with the number of requests in an engine's batch and with long prompts among them. If vLLM's own metric does "
    "not grow (board path), the gateways lack CPU.",
    spread("serving_gateway_inter_token_seconds"),
    leads_to="path",
)
