"""Figures: what an engine says of its work on `/metrics`, by vLLM's own names."""

from __future__ import annotations

import msgspec
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from serving.wire import EngineLoad

RUNNING_METRIC = "vllm:num_requests_running"
WAITING_METRIC = "vllm:num_requests_waiting"
KV_CACHE_METRIC = "vllm:kv_cache_usage_perc"
PROMPTS_SUM_METRIC = "vllm:request_prompt_tokens_sum"
PROMPTS_COUNT_METRIC = "vllm:request_prompt_tokens_count"
PROMPT_TOKENS_METRIC = "vllm:prompt_tokens_total"
GENERATION_TOKENS_METRIC = "vllm:generation_tokens_total"
PREFIX_QUERIES_METRIC = "vllm:prefix_cache_queries_total"
PREFIX_HITS_METRIC = "vllm:prefix_cache_hits_total"
CACHE_CONFIG_METRIC = "vllm:cache_config_info"
#: Its label with what fits into the KV cache.
_KV_CACHE_TOKENS_LABEL = "kv_cache_size_tokens"
#: Of these, some move with each step of a core: a part of a long prompt moves its cache's use alone.
STEP_METRICS = (
    RUNNING_METRIC,
    WAITING_METRIC,
    KV_CACHE_METRIC,
    PROMPT_TOKENS_METRIC,
    GENERATION_TOKENS_METRIC,
)
#: vLLM's own names (0.32) of all that is read from an engine's `/metrics`: gauges here, and counters (`_total`) where
#: tests hold the ledger against them. tests/stack/test_engine_metrics.py asks running engines for each.
READ_METRICS = (
    RUNNING_METRIC,
    WAITING_METRIC,
    KV_CACHE_METRIC,
    PROMPT_TOKENS_METRIC,
    GENERATION_TOKENS_METRIC,
    PROMPTS_SUM_METRIC,
    PROMPTS_COUNT_METRIC,
    PREFIX_QUERIES_METRIC,
    PREFIX_HITS_METRIC,
    CACHE_CONFIG_METRIC,  # `serving accept` compares its KV tokens with the budget
)


class CoreFigures(msgspec.Struct, frozen=True):
    """What one core of an engine says of its work."""

    #: Figures of which some move with each step.
    moving: tuple[float, ...]
    #: Calls running or waiting.
    calls: int


class Look(msgspec.Struct, frozen=True):
    """One look at an engine's `/metrics`."""

    load: EngineLoad
    #: vLLM's number of each core → its figures.
    cores: dict[int, CoreFigures]


def parse_look(text: str) -> Look:
    """Read vLLM's Prometheus text. In its load several API servers or data ranks add up, cache use is their highest."""
    families = list(text_string_to_metric_families(text))
    return Look(_load(families), _cores(families))


def _load(families: list[Metric]) -> EngineLoad:
    """vLLM does not report how many prompt tokens wait: they are the waiting requests times the mean prompt of finished
    ones.
    """
    found: dict[str, list[float]] = {}
    kv_cache_tokens = 0
    for family in families:
        for sample in family.samples:
            if sample.name in READ_METRICS:
                found.setdefault(sample.name, []).append(sample.value)
            if sample.name == CACHE_CONFIG_METRIC:
                tokens = sample.labels.get(_KV_CACHE_TOKENS_LABEL, "")
                kv_cache_tokens += int(tokens) if tokens.isdecimal() else 0
    total = {name: sum(values) for name, values in found.items()}
    waiting = total.get(WAITING_METRIC, 0.0)
    mean_prompt = total.get(PROMPTS_SUM_METRIC, 0.0) / max(1.0, total.get(PROMPTS_COUNT_METRIC, 0.0))
    return EngineLoad(
        running_requests=int(total.get(RUNNING_METRIC, 0.0)),
        waiting_requests=int(waiting),
        kv_cache_used_ratio=max(found.get(KV_CACHE_METRIC, [0.0])),
        queued_prefill_tokens=round(waiting * mean_prompt),
        kv_cache_tokens=kv_cache_tokens,
        prefix_queried_tokens=int(total[PREFIX_QUERIES_METRIC]) if PREFIX_QUERIES_METRIC in total else None,
        prefix_hit_tokens=int(total.get(PREFIX_HITS_METRIC, 0.0)),
    )


def _cores(families: list[Metric]) -> dict[int, CoreFigures]:
    found: dict[int, dict[str, float]] = {}
    for family in families:
        for sample in family.samples:
            if sample.name in STEP_METRICS:
                core = found.setdefault(int(sample.labels.get("engine", 0)), {})
                core[sample.name] = core.get(sample.name, 0.0) + sample.value
    return {
        index: CoreFigures(
            moving=tuple(core.get(name, 0.0) for name in STEP_METRICS),
            calls=int(core.get(RUNNING_METRIC, 0.0) + core.get(WAITING_METRIC, 0.0)),
        )
        for index, core in found.items()
    }
