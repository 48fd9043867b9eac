"""Tenants: who uses how much, and what does it cost?"""

from __future__ import annotations

from boards.grafana import Board, Panel, Row
from boards.promql import HERE, MODEL, MODELS, NAMESPACE, TENANTS, grown, rate, share
from boards.shared import TOKENS

TENANT = HERE + ',tenant=~"$tenant"'
TOKENS_BY_TENANT = "serving_gateway_tenant_tokens_total"
_PROMPT = TENANT + ',kind="prompt"'
_COMPLETION = TENANT + ',kind="completion"'
_COST = grown("serving_gateway_tenant_cost_total", "tenant", TENANT)
_SERVED = rate("serving_gateway_requests_total", where=MODEL + ',outcome="ok"')

BOARD = Board(
    "tenants",
    "gpt-oss-serving: tenants and cost",
    "Who uses how much, and what does it cost at your prices? The ledger (`serving usage`) is the bill; this board only plots it.",
    (
        Row(
            "Over the time shown",
            (
                Panel(
                    "Cost by tenant",
                    "short",
                    "By the prices that were in force (`serving prices list`); nothing where there are none. An agent stuck in a "
                    "loop shows here first: `serving usage --calls 20 --tenant NAME`.",
                    {"{{tenant}}": f"sort_desc({_COST})"},
                    kind="table",
                    columns=12,
                    rows=9,
                ),
                Panel(
                    "Tokens by tenant",
                    "short",
                    "The twenty largest, prompt and completion together.",
                    {"{{tenant}}": f"topk(20, {grown(TOKENS_BY_TENANT, 'tenant', TENANT)})"},
                    kind="bargauge",
                    columns=12,
                    rows=9,
                ),
            ),
        ),
        Row(
            "Tenants",
            (
                Panel(
                    "Requests",
                    "reqps",
                    "A tenant that stops abruptly may have an expired key; one that grows abruptly may be a job stuck in a loop.",
                    {"{{tenant}}": rate("serving_gateway_tenant_requests_total", "tenant", TENANT)},
                    columns=12,
                    is_stacked=True,
                ),
                Panel(
                    "Requests that were not served",
                    "reqps",
                    "`rejected`: their keys, models or bodies. `client_disconnected`: their time-outs are shorter than ours.",
                    {
                        "{{tenant}} {{outcome}}": rate(
                            "serving_gateway_tenant_requests_total", "tenant, outcome", TENANT + ',outcome!="ok"'
                        )
                    },
                    columns=12,
                    leads_to="serving",
                ),
                Panel(
                    "Prompt tokens",
                    "short",
                    "A second. They delay the first token of every other request on the same engines.",
                    {"{{tenant}}": rate(TOKENS_BY_TENANT, "tenant", _PROMPT)},
                    columns=12,
                    is_stacked=True,
                ),
                Panel(
                    "Completion tokens",
                    "short",
                    "A second. Each request holds a place in a batch until its last token.",
                    {"{{tenant}}": rate(TOKENS_BY_TENANT, "tenant", _COMPLETION)},
                    columns=12,
                    is_stacked=True,
                ),
                Panel(
                    "Calls beyond a soft budget",
                    "reqps",
                    "Of tenants, and of keys, that have spent more of this month than their soft budget; the hard one refuses them.",
                    {"{{tenant}}": rate("serving_gateway_tenant_over_soft_budget_total", "tenant", TENANT)},
                    columns=24,
                ),
            ),
        ),
        Row(
            "Models",
            (
                TOKENS,
                Panel(
                    "Prompt tokens found in cache",
                    "percentunit",
                    "As billed. They need almost no computing: long common prefixes of prompts keep this high.",
                    {
                        "{{model}}": share(
                            rate("serving_gateway_tokens_total", "model", MODEL + ',kind="cached_prompt"'),
                            rate("serving_gateway_tokens_total", "model", MODEL + ',kind="prompt"'),
                        )
                    },
                    most=1,
                    leads_to="engines",
                ),
                Panel(
                    "Tokens of a request",
                    "short",
                    "Billed tokens per successful request, by kind. Longer prompts and answers need more engines for the same "
                    "number of requests: `serving plan` takes both.",
                    {
                        "{{kind}}": f"{rate('serving_gateway_tokens_total', 'kind')} / on () group_left () ({_SERVED} > 0)"
                    },
                ),
            ),
        ),
    ),
    (
        NAMESPACE,
        MODELS,
        TENANTS,
    ),
)
