"""Autoscaling: how many engines, why not more, how long a start takes?"""

from __future__ import annotations

from boards.grafana import Board, Panel, Row
from boards.promql import CELL, CELLS, HERE, MODEL, MODELS, NAMESPACE, mean, once, rate, total
from boards.shared import OLDEST, REPLICAS, WAITING

BOARD = Board(
    "autoscaling",
    "gpt-oss-serving: autoscaling",
    "How many engines are there, how many should there be, and what are the missing ones waiting for?",
    (
        Row(
            "Engines",
            (
                REPLICAS,
                Panel(
                    "Replicas by state and cell",
                    "short",
                    "An engine goes through starting, loading and warming to ready. If one gets stuck: its log, `serving status`.",
                    {"{{cell}} {{model}} {{state}}": total("serving_engine_replicas", "cell, model, state", CELL)},
                    is_stacked=True,
                ),
                Panel(
                    "Without room",
                    "short",
                    "1 while a model cannot get what it wants: models of higher priority, or no node with enough free GPUs. "
                    "`serving status` says which.",
                    {"{{cell}} {{model}}": once("serving_engine_shortage", "cell, model", CELL)},
                ),
                Panel(
                    "Wanted, by cell",
                    "short",
                    "What each directory decided, once a second: up at once, down slowly.",
                    {"{{cell}} {{model}}": once("serving_engine_wanted_replicas", "cell, model", CELL)},
                ),
                Panel(
                    "What Ray Serve aims at and has",
                    "short",
                    "Each pod of an engine counts. If it differs from what is wanted, check Serve's controller on the cell's head.",
                    {
                        "{{application}} aimed at": f'max by (application) (ray_serve_autoscaling_target_replicas{{{HERE},application=~"model-.*"}})',
                        "{{application}} healthy": f'sum by (application) (ray_serve_deployment_replica_healthy{{{HERE},application=~"model-.*"}})',
                    },
                ),
                Panel(
                    "Gateways that poll",
                    "short",
                    "By directory. Fewer than there are: the fleet is planned without the others' demand.",
                    {"cell {{cell}}": f'max by (cell) (serving_directory_gateways{{{HERE},cell=~"$cell"}})'},
                ),
            ),
        ),
        Row(
            "Demand",
            (
                Panel(
                    "Requests",
                    "reqps",
                    "By model. Tokens drive the number of engines more than requests do: look at both.",
                    {"{{model}}": rate("serving_gateway_requests_total", "model")},
                    is_stacked=True,
                ),
                WAITING,
                OLDEST,
                Panel(
                    "Requests of an engine",
                    "short",
                    "In the batch and in the queue, the mean of ready engines. Above the model's knee more engines are wanted "
                    "(`serving models budget NAME`).",
                    {
                        "{{model}}": f"avg by (model) (serving_engine_running_requests{{{CELL}}}"
                        f" + serving_engine_waiting_requests{{{CELL}}})"
                    },
                    leads_to="engines",
                ),
                Panel(
                    "KV cache of an engine",
                    "percentunit",
                    "The mean. Near full, more engines are wanted whatever their batch sizes.",
                    {"{{model}}": f"avg by (model) (serving_engine_kv_cache_used_ratio{{{CELL}}})"},
                    most=1,
                    leads_to="engines",
                ),
                Panel(
                    "Calls refused",
                    "reqps",
                    "Backpressure for lack of room. While engines start, a larger min_replicas would have served these calls.",
                    {
                        "{{model}} {{decision}}": rate(
                            "serving_gateway_admissions_total",
                            "model, decision",
                            MODEL + ',decision=~"refused_full|refused_wait"',
                        )
                    },
                ),
            ),
        ),
        Row(
            "Starts",
            (
                Panel(
                    "Starts and failures",
                    "short",
                    "In ten minutes. Failures in every window are a crash loop; many at once are a lost node.",
                    {
                        "{{cell}} {{model}} starts": f"sum by (cell, model) (increase(serving_engine_starts_total{{{CELL}}}[10m]))",
                        "{{cell}} {{model}} failures": f"sum by (cell, model) (increase(serving_engine_failures_total{{{CELL}}}[10m]))",
                        "{{cell}} {{model}} {{cause}}": f"sum by (cell, model, cause) (increase(serving_engine_ejections_total{{{CELL}}}[10m]))",
                    },
                ),
                Panel(
                    "The next start waits",
                    "s",
                    "Back-off because engines of this model keep failing: 5 s after the second failure, doubled each time, 300 at most.",
                    {"{{cell}} {{model}}": once("serving_engine_start_wait_seconds", "cell, model", CELL)},
                ),
                Panel(
                    "Mean length of a start's phases",
                    "s",
                    "Over the time shown. Loading: the volume's speed. Warming: compilation, kept on cacheVolume. Starting: "
                    "placement and imports.",
                    {"{{model}} {{phase}}": mean("serving_engine_start_phase_seconds", "model, phase", CELL)},
                    kind="bargauge",
                ),
            ),
        ),
    ),
    (NAMESPACE, MODELS, CELLS),
)
