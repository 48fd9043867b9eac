"""Every metric of vLLM's that we read is there, by that name and of that kind: a rename fails here, not in production."""

import re
from pathlib import Path

from metrics_catalog import catalog
from serving.engine.figures import READ_METRICS
from tests.stack.running import Stack

ROOT = Path(__file__).parents[2]
#: A name, in code or in a query.
NAMED = re.compile(r"vllm:[a-z_]+[a-z]")
READERS = ("serving", "tests", "loadtest", "deploy", "helm")
#: Metrics that dashboards and alerts ask for.
CATALOGUED = catalog().plane("vllm").metrics
#: The same, of engines that guess tokens ahead.
GUESSING = catalog().plane("vllm_guessing").metrics
#: Of engines that compute prompts for others: tests/long/test_prefill_apart.py alone reads them, of two that run.
HANDING = {"vllm:prompt_tokens_by_source_total", "vllm:nixl_num_failed_transfers_total"}
#: Files of these kinds name metrics: code, rules and dashboards.
KINDS = {".py", ".yaml", ".yml", ".json", ".tpl"}


def require_metrics(stack: Stack) -> None:
    """Each name we read has a sample of the kind that its ending says, for each of the engine's cores; and those are what an
    engine answers to a replica, which asks for no more."""
    families = stack.metric_families()
    cores = [name for name in stack.engine_members() if name.startswith("EngineCore")]
    for name in READ_METRICS:
        samples = [
            (family.type, it.labels["engine"]) for family in families for it in family.samples if it.name == name
        ]
        ending = name.rpartition("_")[2]
        kind = {"total": "counter", "sum": "histogram", "count": "histogram"}.get(ending, "gauge")
        assert sorted(samples) == [(kind, str(index)) for index in range(len(cores))], name
    some = {(it.name, *it.labels.items()) for family in stack.metric_families(*READ_METRICS) for it in family.samples}
    assert some == {
        (it.name, *it.labels.items()) for family in families for it in family.samples if it.name in READ_METRICS
    }
    types = {family.name: family.type for family in families}
    for metric in CATALOGUED:
        assert types.get(metric.name.removesuffix("_total")) == metric.type, metric.name


def test_a_running_engine_has_each(stack: Stack) -> None:
    """The default model's engine."""
    require_metrics(stack)


def test_no_other_name_is_read() -> None:
    """A name that anything here reads is on one of the lists that are held against a running engine."""
    known = {*READ_METRICS, *HANDING, *(name for it in (*CATALOGUED, *GUESSING) for name in (it.name, *it.samples))}
    files = [path for reader in READERS for path in (ROOT / reader).rglob("*") if path.suffix in KINDS]
    named = {(name, path.relative_to(ROOT)) for path in files for name in NAMED.findall(path.read_text())}
    assert len({name for name, _ in named}) >= len(READ_METRICS), "the pattern no longer finds them"
    assert {(name, path) for name, path in named if name not in known} == set()
