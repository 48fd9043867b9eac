"""Scaling: how many engines of each model this cell should have, decided in the directory; Serve's hook reads it.

The policy is `serving.engine.autoscale`; here is what it is asked with: replicas' reports, gateways' demand, the plans
that the settings made. Plain data, the time given.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from serving.catalog import Knee, Model
from serving.config import ModelSettings
from serving.engine.autoscale import Bounds, Decision, Memory, ReplicaSignal, wanted
from serving.engine.command import EngineSpec
from serving.errors import Refusal
from serving.wire import Demand, ListedModel, ReplicaReport, Task

logger = logging.getLogger("serving.directory")

#: Seconds between two decisions: Serve's hook reads about as often.
DECISION_INTERVAL_S = 1.0


class ModelPlan(msgspec.Struct, frozen=True):
    """What the settings want of one model; a change of it restarts nothing."""

    name: str
    task: Task
    context_tokens: int
    bounds: Bounds
    #: None where the fleet is fixed.
    knee: Knee | None = None
    adapters: tuple[str, ...] = ()


def plan(model: Model, settings: ModelSettings, spec: EngineSpec, estimate: Knee | None) -> ModelPlan:
    """The plan of one model; raises Refusal when a fleet may change and nothing says what one engine of it does."""
    knee = settings.knee or estimate
    if settings.is_scaled and knee is None:
        raise Refusal(
            f"The fleet of {model.name} may change between {settings.min_replicas} and {settings.max_replicas}, and "
            "nothing says what one engine of it does: give it a `knee`, or the same `min_replicas` and `max_replicas`."
        )
    bounds = Bounds(
        settings.min_replicas,
        settings.max_replicas,
        settings.sleep_after_s if settings.min_replicas == 0 else None,
    )
    adapters = tuple(adapter.name for adapter in settings.adapters)
    return ModelPlan(model.name, model.task, spec.context_tokens, bounds, knee, adapters)


def to_plain(plans: Iterable[ModelPlan]) -> list[dict[str, Any]]:
    """Plans as JSON-like data: what Serve takes for a deployment's `user_config`."""
    plain: list[dict[str, Any]] = msgspec.to_builtins(list(plans), enc_hook=lambda knee: knee.model_dump(mode="json"))
    return plain


def from_plain(plain: list[dict[str, Any]]) -> list[ModelPlan]:
    return msgspec.convert(plain, list[ModelPlan], dec_hook=lambda kind, value: kind.model_validate(value))


class Scaler:
    """What is wanted of every model, and what must be remembered to decide again."""

    def __init__(self) -> None:
        self._plans: dict[str, ModelPlan] = {}
        self._memories: dict[str, Memory] = {}
        self._decisions: dict[str, Decision] = {}
        self._decided_at = float("-inf")

    def plan(self, plans: Iterable[ModelPlan]) -> None:
        """Take new plans in place of the old ones; what is remembered of models that stay is kept."""
        self._plans = {it.name: it for it in plans}
        self._memories = {name: memory for name, memory in self._memories.items() if name in self._plans}
        self._decisions = {name: decision for name, decision in self._decisions.items() if name in self._plans}
        self._decided_at = float("-inf")

    def decide(
        self, heard: Sequence[tuple[float, ReplicaReport]], demand: Mapping[str, Demand] | None, now: float
    ) -> None:
        """Decide anew unless that was a moment ago. `heard`: when, and what; `demand` None: no gateway spoke."""
        if now - self._decided_at < DECISION_INTERVAL_S:
            return
        self._decided_at = now
        for name, model in self._plans.items():
            signals = [_signal(report, now - at) for at, report in heard if report.model == name and not report.rank]
            seen = None if demand is None else demand.get(name, Demand())
            self._remember(name, _decide(model, signals, seen, self._memories.get(name, Memory()), now))

    def _remember(self, name: str, decision: Decision) -> None:
        before = self._decisions.get(name)
        if before is None or before.replicas != decision.replicas:
            was = "" if before is None else f" instead of {before.replicas}"
            logger.info("%s: %d engines wanted%s (%s)", name, decision.replicas, was, decision.reason)
        self._decisions[name], self._memories[name] = decision, decision.memory

    def wanted(self) -> dict[str, int]:
        """Model → engines wanted, as last decided."""
        return {name: decision.replicas for name, decision in self._decisions.items()}

    def listed(self) -> tuple[ListedModel, ...]:
        """Every planned model, as gateways hear of it."""
        return tuple(_listed(it, self._decisions.get(it.name)) for it in self._plans.values())


def _decide(
    model: ModelPlan, signals: Sequence[ReplicaSignal], demand: Demand | None, memory: Memory, now: float
) -> Decision:
    if model.knee is None:
        return Decision(model.bounds.max_replicas, memory, "fixed")
    return wanted(signals, demand, model.bounds, model.knee, memory, now)


def _signal(report: ReplicaReport, age_s: float) -> ReplicaSignal:
    load = report.load
    return ReplicaSignal(
        replica_id=report.replica_id,
        state=report.state,
        age_s=age_s,
        running_requests=load.running_requests,
        waiting_requests=load.waiting_requests,
        queued_prefill_tokens=load.queued_prefill_tokens,
        kv_cache_used_ratio=load.kv_cache_used_ratio,
    )


def _listed(model: ModelPlan, decision: Decision | None) -> ListedModel:
    return ListedModel(
        name=model.name,
        task=model.task,
        context_tokens=model.context_tokens,
        adapters=model.adapters,
        wanted=None if decision is None else decision.replicas,
        may_sleep=model.bounds.min_replicas == 0,
        reason=None if decision is None else decision.reason,
    )


def total(reports: Iterable[Mapping[str, Demand]]) -> dict[str, Demand]:
    """All gateways' demand, model by model."""
    summed: dict[str, Demand] = {}
    for report in reports:
        for name, more in report.items():
            so_far = summed.get(name, Demand())
            summed[name] = Demand(
                waiting_requests=so_far.waiting_requests + more.waiting_requests,
                oldest_wait_s=max(so_far.oldest_wait_s, more.oldest_wait_s),
                waiting_prompt_tokens=so_far.waiting_prompt_tokens + more.waiting_prompt_tokens,
                arrived_prompt_tokens_per_s=so_far.arrived_prompt_tokens_per_s + more.arrived_prompt_tokens_per_s,
                expected_output_tokens_per_s=so_far.expected_output_tokens_per_s + more.expected_output_tokens_per_s,
            )
    return summed
