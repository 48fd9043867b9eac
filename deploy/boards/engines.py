"""Engines: batches, KV cache, prefix cache and GPUs."""

from __future__ import annotations

from boards.grafana import Board, Panel, Row
from boards.promql import CELL, CELLS, HERE, MODELS, NAMESPACE, gpus, once, rate, share, spread, total

BOARD = Board(
    "engines",
    "gpt-oss-serving: engines and KV cache",
    "What do engines compute, what do they lack, and are the GPUs well? vLLM's own figures, by replica.",
    (
        Row(
            "Work",
            (
                Panel(
                    "Requests in the batch",
                    "short",
                    "Near max_num_seqs of the profile (`serving models show NAME`) the next ones queue. One engine far from the "
                    "others: routing keeps common prompts together, or that engine is new.",
                    {"{{model}} {{replica}}": total("vllm:num_requests_running", "model, replica", CELL)},
                ),
                Panel(
                    "Requests in engines' queues",
                    "short",
                    "With free KV the batch is full; with full KV prompts are too long or too many.",
                    {"{{model}} {{replica}}": total("vllm:num_requests_waiting", "model, replica", CELL)},
                ),
                Panel(
                    "How requests ended",
                    "reqps",
                    "`abort`: clients left. `length`: answers cut at a limit. `error`: the engine's log.",
                    {"{{finished_reason}}": rate("vllm:request_success_total", "finished_reason", CELL)},
                    is_stacked=True,
                ),
                Panel(
                    "Tokens generated",
                    "short",
                    "A second. Nothing while requests run is a wedged engine, and an alert.",
                    {"{{model}} {{replica}}": rate("vllm:generation_tokens_total", "model, replica", CELL)},
                ),
                Panel(
                    "Prompt tokens computed",
                    "short",
                    "A second. Peaks of it are gaps between everyone's tokens.",
                    {"{{model}} {{replica}}": rate("vllm:prompt_tokens_total", "model, replica", CELL)},
                ),
                Panel(
                    "Length of prompts",
                    "short",
                    "Tokens. Longer ones than `serving plan` was told need more KV and more engines.",
                    spread("vllm:request_prompt_tokens", where=CELL),
                ),
            ),
        ),
        Row(
            "KV cache",
            (
                Panel(
                    "KV cache in use",
                    "percentunit",
                    "Full with a queue: fewer requests fit than were planned. `serving models budget NAME` has the arithmetic.",
                    {"{{model}} {{replica}}": once("vllm:kv_cache_usage_perc", "model, replica", CELL)},
                    limit=0.95,
                    most=1,
                ),
                Panel(
                    "Preemptions",
                    "short",
                    "A second: requests thrown out of the batch for lack of KV and computed anew. More than none for long is waste.",
                    {"{{model}} {{replica}}": rate("vllm:num_preemptions_total", "model, replica", CELL)},
                ),
                Panel(
                    "Found in the prefix cache",
                    "percentunit",
                    "Share of prompt tokens that need no computing. It falls when prompts change at their beginning (a date, a name), "
                    "or when KV is too full to keep any.",
                    {
                        "{{model}}": share(
                            rate("vllm:prefix_cache_hits_total", "model", CELL),
                            rate("vllm:prefix_cache_queries_total", "model", CELL),
                        )
                    },
                    most=1,
                ),
            ),
        ),
        Row(
            "As the directory hears them",
            (
                Panel(
                    "Requests in the batch, as told",
                    "short",
                    "What routing and scaling decide by. Away from vLLM's own figure for long, that replica's report is stale.",
                    {"{{model}} {{replica}}": once("serving_engine_running_requests", "model, replica", CELL)},
                ),
                Panel(
                    "Requests in queues, as told",
                    "short",
                    "Beside what vLLM itself says of its queues; away from it for long, that replica's report is stale.",
                    {"{{model}} {{replica}}": once("serving_engine_waiting_requests", "model, replica", CELL)},
                ),
                Panel(
                    "KV cache in use, as told",
                    "percentunit",
                    "Of several data ranks the fullest.",
                    {"{{model}} {{replica}}": once("serving_engine_kv_cache_used_ratio", "model, replica", CELL)},
                    limit=0.95,
                    most=1,
                ),
            ),
        ),
        Row(
            "GPUs, where NVIDIA's exporter is",
            (
                Panel(
                    "Busy",
                    "percent",
                    "Share of time in which any kernel ran: 100 says busy, not well used. 0 while requests run is an engine to look at.",
                    {"{{Hostname}} GPU {{gpu}}": gpus("DCGM_FI_DEV_GPU_UTIL")},
                    most=100,
                ),
                Panel(
                    "Memory in use",
                    "mbytes",
                    "Stands still from an engine's start on. Where it moves, something else uses the GPU.",
                    {"{{Hostname}} GPU {{gpu}}": gpus("DCGM_FI_DEV_FB_USED")},
                ),
                Panel(
                    "Last Xid and double-bit ECC errors",
                    "short",
                    "An Xid's number stays until the driver starts anew; NVIDIA's table says what it means. Needs the chart's rules.",
                    {
                        "{{Hostname}} GPU {{gpu}}: Xid": f"serving_gpu:xid:last{{{HERE}}} > 0",
                        "{{Hostname}} GPU {{gpu}}: ECC errors": f"serving_gpu:ecc_double_bit_errors:total{{{HERE}}} > 0",
                    },
                ),
                Panel(
                    "GPUs on which engines keep failing",
                    "short",
                    "Three failures within a day, whatever was served. `serving status` names them: take the node out.",
                    {"cell {{cell}}": f'max by (cell) (serving_engine_suspect_devices{{{HERE},cell=~"$cell"}})'},
                ),
            ),
        ),
    ),
    (NAMESPACE, MODELS, CELLS),
)
