"""Overview, for a manager: is it used, does it keep its promise, what does it cost?"""

from __future__ import annotations

from dataclasses import replace

from boards.grafana import Board, Panel, Row
from boards.promql import HERE, MODEL, MODELS, NAMESPACE, grown, rate, share
from boards.shared import REPLICAS, REQUESTS, SLO, TOKENS, VERDICTS

MET = MODEL + ',verdict="met"'

BOARD = Board(
    "overview",
    "gpt-oss-serving: overview",
    "Is it used, does it keep its promise, and what does it cost? For managers.",
    (
        Row(
            "Over the time shown",
            (
                Panel(
                    "Requests within the SLO",
                    "percentunit",
                    "Below the objective the service breaks its promise: ask the on-call, whose board is serving.",
                    {"within the SLO": share(grown(SLO, where=MET), grown(SLO))},
                    kind="stat",
                    columns=4,
                    rows=5,
                    most=1,
                    leads_to="serving",
                ),
                Panel(
                    "Requests",
                    "short",
                    "All that ended, whatever the outcome.",
                    {"requests": grown("serving_gateway_requests_total")},
                    kind="stat",
                    columns=4,
                    rows=5,
                ),
                Panel(
                    "Failed by us",
                    "percentunit",
                    "Requests that ended in an error of ours. Above 1 % the on-call should already be working on it.",
                    {
                        "failed": share(
                            grown("serving_gateway_requests_total", where=MODEL + ',outcome="error"'),
                            grown("serving_gateway_requests_total"),
                        )
                    },
                    kind="stat",
                    columns=4,
                    rows=5,
                    limit=0.01,
                    most=1,
                    leads_to="serving",
                ),
                Panel(
                    "Tokens read",
                    "short",
                    "Prompt tokens billed.",
                    {"prompt": grown("serving_gateway_tokens_total", where=MODEL + ',kind="prompt"')},
                    kind="stat",
                    columns=4,
                    rows=5,
                    leads_to="tenants",
                ),
                Panel(
                    "Tokens written",
                    "short",
                    "Completion tokens billed, reasoning among them.",
                    {"completion": grown("serving_gateway_tokens_total", where=MODEL + ',kind="completion"')},
                    kind="stat",
                    columns=4,
                    rows=5,
                    leads_to="tenants",
                ),
                Panel(
                    "Tenants that called",
                    "short",
                    "Fewer than usual: has a tenant's key expired?",
                    {"tenants": f"count({grown('serving_gateway_tenant_requests_total', 'tenant', HERE)} > 0)"},
                    kind="stat",
                    columns=4,
                    rows=5,
                    leads_to="tenants",
                ),
            ),
        ),
        Row(
            "Promise",
            (
                Panel(
                    "Goodput",
                    "reqps",
                    "Requests within the SLO beside all that were judged. If the second grows and the first does not, "
                    "the fleet is at capacity.",
                    {"within the SLO": rate(SLO, where=MET), "judged": rate(SLO)},
                    columns=12,
                    leads_to="serving",
                ),
                replace(VERDICTS, columns=12, leads_to="serving"),
            ),
        ),
        Row("Use", (REQUESTS, TOKENS, REPLICAS)),
        Row(
            "Who",
            (
                Panel(
                    "Tokens by tenant",
                    "short",
                    "The ten largest over the time shown, prompt and completion together. The bill is `serving usage`.",
                    {"{{tenant}}": f"topk(10, {grown('serving_gateway_tenant_tokens_total', 'tenant', HERE)})"},
                    kind="bargauge",
                    columns=12,
                    leads_to="tenants",
                ),
                Panel(
                    "Tokens by model",
                    "short",
                    "Prompt and completion tokens over the time shown. A model without requests can scale to zero: min_replicas 0.",
                    {"{{model}}": grown("serving_gateway_tokens_total", "model", MODEL + ',kind=~"prompt|completion"')},
                    kind="bargauge",
                    columns=12,
                    leads_to="tenants",
                ),
            ),
        ),
    ),
    (NAMESPACE, MODELS),
)
