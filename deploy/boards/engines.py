"""Engines: batches, KV cache, prefix cache and GPUs."""

from __future__ import annotations

from boards.grafana import Board, Panel, Row
from boards.promql import CELL, CELLS, HERE, MODELS, NAMESPACE, gpus, once, rate, share, spread, total

BOARD = Board(
    "engines",
    "gpt-oss-serving: engines and KV cache",
    "What do engines compute, what do they lack, and are the GPUs healthy? vLLM's own metrics, by replica.",
    (
        Row(
            "Work",
            (
                Panel(
                    "Requests in the batch",
                    "short",
                    "Near max_num_seqs of the profile (`serving models show NAME`) further requests queue. One engine far from the "
                    "others: that engine is new, or its requests are longer.",
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
                    "A second. None while requests run is a wedged engine, and fires an alert.",
                    {"{{model}} {{replica}}": rate("vllm:generation_tokens_total", "model, replica", CELL)},
                ),
                Panel(
                    "Prompt tokens computed",
                    "short",
                    "A second. Peaks widen the gaps between all other requests' tokens.",
                    {"{{model}} {{replica}}": rate("vllm:prompt_tokens_total", "model, replica", CELL)},
                ),
                Panel(
                    "Length of prompts",
                    "short",
                    "Tokens. Prompts longer than those given to `serving plan` need more KV and more engines.",
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
                    "A second: requests evicted from the batch for lack of KV and recomputed. A steady rate above zero is wasted work.",
                    {"{{model}} {{replica}}": rate("vllm:num_preemptions_total", "model, replica", CELL)},
                ),
                Panel(
                    "Found in the prefix cache",
                    "percentunit",
                    "Share of prompt tokens that need no computing. It falls when prompts start to differ at their beginning (a date, a name), "
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
            "Tokens guessed ahead",
            (
                Panel(
                    "Guesses that were right",
                    "percentunit",
                    "Of models with `speculation`. Below a third, guessing costs more than it saves: guess fewer tokens, or none.",
                    {
                        "{{model}}": share(
                            rate("vllm:spec_decode_num_accepted_tokens_total", "model", CELL),
                            rate("vllm:spec_decode_num_draft_tokens_total", "model", CELL),
                        )
                    },
                    most=1,
                ),
                Panel(
                    "Right guesses a step",
                    "short",
                    "Tokens that a request gets besides the one of each step in which something was guessed for it.",
                    {
                        "{{model}}": share(
                            rate("vllm:spec_decode_num_accepted_tokens_total", "model", CELL),
                            rate("vllm:spec_decode_num_drafts_total", "model", CELL),
                        )
                    },
                ),
            ),
        ),
        Row(
            "As reported to the directory",
            (
                Panel(
                    "Requests in the batch, as reported",
                    "short",
                    "What routing and scaling decide by. If it differs from vLLM's own metric for long, that replica's report is stale.",
                    {"{{model}} {{replica}}": once("serving_engine_running_requests", "model, replica", CELL)},
                ),
                Panel(
                    "Requests in queues, as reported",
                    "short",
                    "If it differs from vLLM's own queue metric for long, that replica's report is stale.",
                    {"{{model}} {{replica}}": once("serving_engine_waiting_requests", "model, replica", CELL)},
                ),
                Panel(
                    "KV cache in use, as reported",
                    "percentunit",
                    "Of several data ranks the fullest. Near 1 with a queue: add engines.",
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
                    "Share of time in which any kernel ran: 100 means busy, not well used. 0 while requests run: check that engine.",
                    {"{{Hostname}} GPU {{gpu}}": gpus("DCGM_FI_DEV_GPU_UTIL")},
                    most=100,
                ),
                Panel(
                    "Memory in use",
                    "mbytes",
                    "Constant from an engine's start. If it moves, something else is using the GPU.",
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
                    "Three failures within a day, whatever was served. `serving status` names them: drain the node.",
                    {"cell {{cell}}": f'max by (cell) (serving_engine_suspect_devices{{{HERE},cell=~"$cell"}})'},
                ),
            ),
        ),
    ),
    (NAMESPACE, MODELS, CELLS),
)
