"""Path: where one request's time goes, from admission to the engine and back."""

from __future__ import annotations

from boards.grafana import Board, Panel, Row
from boards.promql import MODEL, MODELS, NAMESPACE, quantile, rate, share, spread, total
from boards.shared import REQUESTS

BOARD = Board(
    "path",
    "gpt-oss-serving: one request's path",
    "Where does a request's time go? From top to bottom: admission, the engine's queue, the prompt, the tokens, the way back.",
    (
        Row(
            "At admission",
            (
                Panel(
                    "Wait for an engine",
                    "s",
                    "0 for most calls. Above: too few engines (board autoscaling).",
                    spread("serving_gateway_waiting_seconds"),
                    leads_to="autoscaling",
                ),
                Panel(
                    "Calls that had to wait",
                    "percentunit",
                    "Of all calls that reached admission. Above a few per cent for long: more engines.",
                    {
                        "{{model}}": share(
                            rate("serving_gateway_admissions_total", "model", MODEL + ',decision!="admitted"'),
                            rate("serving_gateway_admissions_total", "model"),
                        )
                    },
                    most=1,
                    leads_to="autoscaling",
                ),
                Panel(
                    "Failed attempts at engines",
                    "short",
                    "A second. Each costs its call a connection attempt, up to engine_connect_s.",
                    {"{{failure}}": rate("serving_gateway_upstream_retries_total", "failure")},
                    is_stacked=True,
                    leads_to="serving",
                ),
            ),
        ),
        Row(
            "In a full fleet",
            (
                Panel(
                    "Calls that wait for a place",
                    "short",
                    "By class: interactive ones go first. Batch alone: the fleet is as full as it should be.",
                    {"{{priority}}": total("serving_gateway_queued_calls", "priority")},
                    is_stacked=True,
                    leads_to="autoscaling",
                ),
                Panel(
                    "Wait for a place",
                    "s",
                    "95 of 100 calls that had to wait wait less. At its class's time in gateway.queue a call gets 503.",
                    {"{{priority}}": quantile(0.95, "serving_gateway_queue_seconds", "priority")},
                    leads_to="tenants",
                ),
                Panel(
                    "What became of them",
                    "reqps",
                    "Overtaken: after one of a class before theirs, or of a tenant that had had less. Refused: add engines, or lower a limit.",
                    {"{{outcome}}": rate("serving_gateway_queue_outcomes_total", "outcome")},
                    is_stacked=True,
                    leads_to="tenants",
                ),
            ),
        ),
        Row(
            "To the first token",
            (
                Panel(
                    "The engine's queue",
                    "s",
                    "Grows when batches or KV are full (board engines).",
                    spread("vllm:request_queue_time_seconds"),
                    leads_to="engines",
                ),
                Panel(
                    "The prompt",
                    "s",
                    "Grows with its length, and when less of it is found in the prefix cache.",
                    spread("vllm:request_prefill_time_seconds"),
                    leads_to="engines",
                ),
                Panel(
                    "First token, at the engine and at the gateway",
                    "s",
                    "95 of 100. The difference is the wait for an engine plus the network; if it is large without a wait, gateways lack CPU.",
                    {
                        "engine": quantile(0.95, "vllm:time_to_first_token_seconds"),
                        "gateway": quantile(0.95, "serving_gateway_time_to_first_token_seconds"),
                    },
                ),
            ),
        ),
        Row(
            "From token to token",
            (
                Panel(
                    "Between tokens, at the engine and at the gateway",
                    "s",
                    "95 of 100. Both high: engines are slow (board engines). Only the gateway's: gateways lack CPU, or the network is slow.",
                    {
                        "engine": quantile(0.95, "vllm:inter_token_latency_seconds"),
                        "gateway": quantile(0.95, "serving_gateway_inter_token_seconds"),
                    },
                ),
                Panel(
                    "Time per output token",
                    "s",
                    "The mean of each stream, without the time that its client took to read.",
                    spread("serving_gateway_time_per_output_token_seconds", "model"),
                ),
                Panel(
                    "Keep-alives",
                    "short",
                    "Comments a second sent to streams on which an engine was silent for gateway.timeouts.keep_alive_s.",
                    {"{{model}}": rate("serving_gateway_keep_alives_total", "model")},
                    leads_to="engines",
                ),
            ),
        ),
        Row(
            "The whole",
            (
                Panel(
                    "Whole answers",
                    "s",
                    "By route. Beyond gateway.timeouts.request_total_s they are cut.",
                    {
                        "{{route}} half": quantile(0.5, "serving_gateway_request_duration_seconds", "route"),
                        "{{route}} 95 of 100": quantile(0.95, "serving_gateway_request_duration_seconds", "route"),
                    },
                ),
                Panel(
                    "Bytes passed on",
                    "Bps",
                    "Zero while requests are open: engines send nothing, see the keep-alives.",
                    {"{{model}}": rate("serving_gateway_relayed_bytes_total", "model")},
                ),
                REQUESTS,
            ),
        ),
    ),
    (NAMESPACE, MODELS),
)
