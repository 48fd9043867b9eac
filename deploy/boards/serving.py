"""Serving, for the on-call: what fails, what waits, what is missing?"""

from __future__ import annotations

from boards.grafana import Board, Panel, Row
from boards.promql import HERE, MODEL, MODELS, NAMESPACE, grown, once, rate, spread, total
from boards.shared import FIRST_TOKEN, GAPS, OLDEST, REQUESTS, VERDICTS, WAITING

BOARD = Board(
    "serving",
    "gpt-oss-serving: serving",
    "What fails, what waits and what is missing? For the on-call; the alerts' runbook is in deploy/README.md.",
    (
        Row(
            "Now",
            (
                Panel(
                    "Alerts",
                    "short",
                    "Each has an entry in the runbook (runbook_url). Empty is good, as long as Prometheus scrapes: "
                    "ServingNotScraped fires when it does not.",
                    {
                        "{{alertname}}": "count by (alertname, severity) "
                        f'(ALERTS{{{HERE},alertname=~"Serving.*",alertstate="firing"}})'
                    },
                    kind="table",
                    columns=12,
                ),
                Panel(
                    "How fast the error budget burns",
                    "short",
                    "1 uses up a month's budget in a month; 14.4 over an hour pages the on-call. Needs the chart's rules.",
                    {
                        f"{{{{model}}}} over {window}": f"model:serving_slo_missed:ratio_rate{window}{{{MODEL}}}"
                        f" / on (namespace) group_left () (1 - max by (namespace) (serving:slo_objective:ratio{{{HERE}}}))"
                        for window in ("5m", "1h", "6h")
                    },
                    columns=12,
                    limit=14.4,
                    leads_to="path",
                ),
            ),
        ),
        Row(
            "What clients see",
            (
                REQUESTS,
                Panel(
                    "Errors and refusals by reason",
                    "reqps",
                    "The reason is the error's code, as clients get it. no_replica_ready: autoscaling. engine_failed: the "
                    "engine's log. store_unavailable: the store. overloaded: more gateways, or more engines if calls wait.",
                    {
                        "{{reason}}": rate(
                            "serving_gateway_requests_total", "reason", MODEL + ',outcome=~"error|rejected"'
                        )
                    },
                ),
                VERDICTS,
                FIRST_TOKEN,
                GAPS,
                Panel(
                    "Whole answers",
                    "s",
                    "From a request's arrival to the end of its answer; longer answers take longer.",
                    spread("serving_gateway_request_duration_seconds"),
                    leads_to="path",
                ),
            ),
        ),
        Row(
            "What waits",
            (
                WAITING,
                OLDEST,
                Panel(
                    "Admissions",
                    "reqps",
                    "`waited`: engines are short for a moment. `refused_…`: backpressure, clients get 503 with Retry-After.",
                    {"{{decision}}": rate("serving_gateway_admissions_total", "decision")},
                    is_stacked=True,
                    leads_to="autoscaling",
                ),
            ),
        ),
        Row(
            "What is missing",
            (
                Panel(
                    "Replicas by state",
                    "short",
                    "`serving status` has the reason for `failed`. `draining` for longer than drain_timeout_s is stuck.",
                    {"{{model}} {{state}}": once("serving_gateway_replicas", "model, state")},
                    leads_to="autoscaling",
                ),
                Panel(
                    "Failed attempts at engines",
                    "short",
                    "A second. `refused`: the engine is gone; `broken`: it died while answering; `errored`: its log says why; "
                    "`busy`: it is full. Clients notice only when no other engine is left.",
                    {"{{model}} {{failure}}": rate("serving_gateway_upstream_retries_total", "model, failure")},
                    leads_to="engines",
                ),
                Panel(
                    "Replicas lost",
                    "short",
                    "In five minutes, dropped because no process answered there. Several at once mean a lost node.",
                    {"{{model}}": f"sum by (model) (increase(serving_gateway_replicas_lost_total{{{MODEL}}}[5m]))"},
                    leads_to="engines",
                ),
                Panel(
                    "Retries and their budget",
                    "short",
                    "A second. `refused`: so much fails that the model's retry budget is used up, and clients get 502 or 503. `went on`: streams "
                    "that another engine took over in the middle, unseen by their clients. `handed over`: long prompts that another engine was asked to compute.",
                    {
                        "{{model}} {{decision}}": rate("serving_gateway_retry_budget_total", "model, decision"),
                        "{{model}} went on": rate("serving_gateway_continuations_total", "model"),
                        "{{model}} handed over, {{handover}}": rate(
                            "serving_gateway_prefill_handovers_total", "model, handover"
                        ),
                    },
                    leads_to="engines",
                ),
                Panel(
                    "Outliers",
                    "short",
                    "Replicas that gateways leave out because calls fail there, and those that come back with a growing share; each "
                    "gateway counts its own. `ejections`: in five minutes.",
                    {
                        "{{model}} {{state}}": once("serving_gateway_outlier_replicas", "model, state"),
                        "{{model}} ejections": f"sum by (model) (increase(serving_gateway_outlier_ejections_total{{{MODEL}}}[5m]))",
                    },
                    leads_to="engines",
                ),
                Panel(
                    "Cells that answer",
                    "short",
                    "1: at least one gateway gets answers from that cell. 0: its directory, or the network to it, is down; gateways "
                    "keep routing by its last answer. A paused cell does not answer either.",
                    {"{{source}}": once("serving_gateway_sources_up", "source", HERE)},
                    most=1,
                ),
            ),
        ),
        Row(
            "Batches, background responses and files",
            (
                Panel(
                    "Batches",
                    "short",
                    "By status, of all gateways. `validating` or `finalizing` for minutes: the object store or the database is slow or away.",
                    {"{{status}}": total("serving_gateway_batches", "status", HERE)},
                    is_stacked=True,
                ),
                Panel(
                    "Lines of batches",
                    "short",
                    "Done a second, and left. They use what other calls leave: few while those are many.",
                    {
                        "{{result}} a second": rate("serving_gateway_batch_lines_total", "result", HERE),
                        "left": total("serving_gateway_batch_lines_waiting", where=HERE),
                    },
                ),
                Panel(
                    "Oldest batch, and the longest standstill",
                    "s",
                    "At 24 hours a batch expires with what is done. A standstill is none while other calls or its tenant's limits hold a batch back.",
                    {
                        "oldest": f"max (serving_gateway_batch_oldest_seconds{{{HERE}}})",
                        "standstill": f"max (serving_gateway_batch_stalled_seconds{{{HERE}}})",
                    },
                ),
                Panel(
                    "Batches taken over",
                    "short",
                    "In ten minutes, from gateways that died or could not reach the database.",
                    {"taken over": f"sum (increase(serving_gateway_batch_takeovers_total{{{HERE}}}[10m]))"},
                ),
                Panel(
                    "Responses in the background",
                    "short",
                    "At stored.background_calls_max of a gateway its next is refused.",
                    {"running": total("serving_gateway_background_responses", where=HERE)},
                ),
                Panel(
                    "Bytes of files",
                    "bytes",
                    "Of all tenants, as added up every ten minutes.",
                    {"bytes": f"max (serving_gateway_files_bytes{{{HERE}}})"},
                ),
            ),
        ),
        Row(
            "Gateways and their store",
            (
                Panel(
                    "Requests held",
                    "short",
                    "By each gateway. At gateway.settings.max_open_requests (1,024 by default) it refuses: add gateways, or "
                    "engines if calls wait.",
                    {"{{pod}}": total("serving_gateway_open_requests", "pod", HERE)},
                ),
                Panel(
                    "Store",
                    "short",
                    "1: the gateway's last use of it worked. 0: PostgreSQL, its NetworkPolicy or its Secret; with SQLite the volume.",
                    {"{{pod}}": once("serving_gateway_store_up", "pod", HERE)},
                    most=1,
                ),
                Panel(
                    "Single sign-on",
                    "short",
                    "1: the issuer publishes its keys. 0: it, or the network to it, is down; tokens by known keys work for another day.",
                    {"{{issuer}}": once("serving_gateway_issuers_up", "issuer", HERE)},
                    most=1,
                ),
                Panel(
                    "Limits counted together",
                    "short",
                    "0: Redis or the database in which gateways count is away, and each counts its share of limits; no call is refused "
                    "for it.",
                    {"{{pod}}": once("serving_gateway_counters_up", "pod", HERE)},
                    most=1,
                ),
                Panel(
                    "Decisions by a gateway's share of limits",
                    "short",
                    "While the shared counters were away. Some now and then mean that gateway.counters.timeout_s is too short.",
                    {"{{pod}}": grown("serving_gateway_counters_alone_decisions_total", "pod", HERE)},
                ),
                Panel(
                    "Age of ledger rows not yet written",
                    "s",
                    "Do not delete a pod that has any. They are written when the store is back.",
                    {"{{pod}}": once("serving_gateway_ledger_lag_seconds", "pod", HERE)},
                ),
                Panel(
                    "Ledger rows not yet written",
                    "short",
                    "10,000 are kept in memory, more in a file of the pod.",
                    {"{{pod}}": once("serving_gateway_ledger_rows_waiting", "pod", HERE)},
                ),
                Panel(
                    "Age of audit entries not yet written",
                    "s",
                    "Calls beyond 20,000 are counted alone then; a pod that is deleted loses those that wait.",
                    {"{{pod}}": once("serving_gateway_audit_lag_seconds", "pod", HERE)},
                ),
                Panel(
                    "Certificates end in",
                    "s",
                    "cert-manager renews at two thirds of their life: below 14 days renewal has failed (`kubectl describe certificate`).",
                    {
                        "{{certificate}}": "min by (certificate) "
                        f"(serving_gateway_certificate_expiry_timestamp_seconds{{{HERE}}}) - time()"
                    },
                    kind="stat",
                ),
                Panel(
                    "Workers replaced",
                    "short",
                    "They died or hung (gateway.settings.workers). The gateway's log says how; SIGKILL without a cause is the memory limit.",
                    {"{{pod}}": grown("serving_gateway_workers_replaced_total", "pod", HERE)},
                    kind="stat",
                ),
                Panel(
                    "Versions",
                    "short",
                    "Gateways by version. Two versions long after an upgrade mean a stuck rollout.",
                    {"{{version}}": f"count by (version) (serving_gateway_build_info{{{HERE}}})"},
                    kind="stat",
                ),
            ),
        ),
    ),
    (NAMESPACE, MODELS),
)
