"""Scaling: how many engines of each model this cell should have, decided in the directory; Serve's hook reads it.

The policy is `serving.engine.autoscale`; this module gives it replicas' reports, gateways' demand and the settings'
plans. Plain data, the time given.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from serving.catalog import Knee, Model
from serving.config import ModelSettings
from serving.engine import pool
from serving.engine.autoscale import COMING, Bounds, Decision, Demand, Memory, ReplicaSignal, wanted
from serving.engine.command import EngineSpec
from serving.engine.pool import Grant, Node, Wish
from serving.errors import Refusal
from serving.wire import GatewayReport, ListedModel, PromptFormat, ReplicaReport, ReplicaState, Traffic

logger = logging.getLogger("serving.directory")

#: Seconds between two decisions: Serve's hook reads as often.
DECISION_INTERVAL_S = 1.0
#: Seconds of arrivals that one report may add: all that a directory missed while it was away would look like a surge.
COVERED_MAX_S = 2.0
#: Seconds that placing an engine takes where there is room: only after that is it reported as waiting.
PLACING_S = 10.0
#: States of a replica that has been placed.
PRESENT = COMING | {ReplicaState.READY}

#: Every replica's last report, and when it arrived.
Reports = Sequence[tuple[float, ReplicaReport]]


class ModelPlan(msgspec.Struct, frozen=True):
    """What the settings want of one model; changing it restarts nothing."""

    name: str
    context_tokens: int
    bounds: Bounds
    #: Output tokens of a call that sets no limit itself; 0: no cap but the context.
    default_output_tokens: int = 0
    prompt_format: PromptFormat | None = None
    #: None where the fleet is fixed.
    knee: Knee | None = None
    adapters: tuple[str, ...] = ()
    #: Which model gets the GPUs when there are too few; the higher number goes first.
    priority: int = 0
    #: GPUs of one engine on each of its nodes, those nodes, and their GPU type.
    gpus_per_node: int = 0
    nodes: int = 1
    gpu_type: str | None = None


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
    return ModelPlan(
        name=model.name,
        context_tokens=spec.context_tokens,
        bounds=bounds,
        default_output_tokens=default_output_tokens(model, settings),
        prompt_format=PromptFormat.HARMONY if spec.speaks_harmony else None,
        knee=knee,
        adapters=adapters,
        priority=settings.priority,
        gpus_per_node=spec.gpus_per_node,
        nodes=spec.nodes,
        gpu_type=spec.gpu_type,
    )


def default_output_tokens(model: Model, settings: ModelSettings) -> int:
    """The settings' own value where they have one, the catalogue's otherwise; 0: no cap."""
    own = settings.default_output_tokens
    return model.default_output_tokens if own is None else own


class Plans(msgspec.Struct, frozen=True):
    """What a cell serves, and whether the cluster may add nodes."""

    models: tuple[ModelPlan, ...] = ()
    nodes_may_grow: bool = False


class Scaler:
    """How many engines every model should have, and the state that the next decision needs."""

    def __init__(self) -> None:
        self._plans = Plans()
        self._memories: dict[str, Memory] = {}
        self._decisions: dict[str, Decision] = {}
        self._shortages: dict[str, str | None] = {}
        self._short_since: dict[str, float] = {}
        self._decided_at = float("-inf")

    def plan(self, plans: Plans) -> None:
        """Replace the plans; models that stay keep their memory.

        A memory's peaks belong to its knee: with another knee a new memory begins, and takes over the running fleet.
        """
        knees = {it.name: it.knee for it in self._plans.models}
        names = {it.name for it in plans.models}
        same = {it.name for it in plans.models if it.name in knees and it.knee == knees[it.name]}
        self._plans = plans
        self._memories = {name: memory for name, memory in self._memories.items() if name in same}
        self._decisions = {name: decision for name, decision in self._decisions.items() if name in names}
        self._shortages = {name: shortage for name, shortage in self._shortages.items() if name in names}
        self._short_since = {name: since for name, since in self._short_since.items() if name in names}
        self._decided_at = float("-inf")

    def is_due(self, now: float) -> bool:
        """Is it time for the next decision?"""
        return now - self._decided_at >= DECISION_INTERVAL_S

    def decide(self, reports: Reports, demand: Mapping[str, Demand] | None, nodes: Sequence[Node], now: float) -> None:
        """Decide for every model; `demand` None: no gateway has reported."""
        self._decided_at = now
        of_model: dict[str, list[tuple[float, ReplicaReport]]] = {it.name: [] for it in self._plans.models}
        for reported_at, report in reports:
            if not report.rank and report.model in of_model:
                of_model[report.model].append((reported_at, report))
        decisions = {it.name: self._decide(it, of_model[it.name], demand, now) for it in self._plans.models}
        granted = self._granted(decisions, nodes)
        for model in self._plans.models:
            decision, grant = decisions[model.name], granted.get(model.name)
            self._memories[model.name] = decision.memory
            self._shortages[model.name] = (grant and grant.reason) or self._waits(
                model, of_model[model.name], reports, nodes, now
            )
            if grant and not model.bounds.is_fixed:  # Serve keeps a fixed fleet, which waits for room
                decision = msgspec.structs.replace(decision, replicas=grant.replicas)
            self._remember(model.name, decision)

    def _decide(self, model: ModelPlan, own: Reports, demand: Mapping[str, Demand] | None, now: float) -> Decision:
        if model.knee is None:
            return Decision(model.bounds.max_replicas, Memory(), "fixed")
        signals = [_signal(it, now - reported_at) for reported_at, it in own]
        seen = None if demand is None else demand.get(model.name, Demand())
        if seen is not None and seen.line_requests:
            signals = _without_lines(signals, seen.line_requests)
        return wanted(signals, seen, model.bounds, model.knee, self._memories.get(model.name, Memory()), now)

    def _granted(self, decisions: Mapping[str, Decision], nodes: Sequence[Node]) -> dict[str, Grant]:
        """What the pool grants; empty where the cluster adds nodes on demand, or no node has GPUs."""
        if self._plans.nodes_may_grow or not nodes:
            return {}
        return pool.granted(nodes, [_wish(it, decisions[it.name].replicas) for it in self._plans.models])

    def _waits(self, model: ModelPlan, own: Reports, reports: Reports, nodes: Sequence[Node], now: float) -> str | None:
        """What an engine waits for that has been wanted for a while and is not placed yet."""
        before = self._decisions.get(model.name)
        here = sum(1 for _, it in own if it.state in PRESENT)
        if before is None or not model.gpus_per_node or here >= before.replicas:
            self._short_since.pop(model.name, None)
            return None
        if now - self._short_since.setdefault(model.name, now) < PLACING_S:
            return None
        return pool.waiting_reason(_free(model, reports, nodes), _wish(model, before.replicas))

    def _remember(self, name: str, decision: Decision) -> None:
        before = self._decisions.get(name)
        if before is None or before.replicas != decision.replicas:
            was = "" if before is None else f" instead of {before.replicas}"
            logger.info("%s: %d engines wanted%s (%s)", name, decision.replicas, was, decision.reason)
        self._decisions[name] = decision

    def wanted(self) -> dict[str, int]:
        """Model → engines wanted, as last decided."""
        return {name: decision.replicas for name, decision in self._decisions.items()}

    def listed(self) -> tuple[ListedModel, ...]:
        """Every planned model, as gateways get it."""
        return tuple(self._listed(it) for it in self._plans.models)

    def _listed(self, model: ModelPlan) -> ListedModel:
        decision = self._decisions.get(model.name)
        return ListedModel(
            name=model.name,
            context_tokens=model.context_tokens,
            default_output_tokens=model.default_output_tokens,
            prompt_format=model.prompt_format,
            adapters=model.adapters,
            wanted=None if decision is None else decision.replicas,
            may_sleep=model.bounds.min_replicas == 0,
            reason=None if decision is None else decision.reason,
            shortage=self._shortages.get(model.name),
        )


def _wish(model: ModelPlan, replicas: int) -> Wish:
    return Wish(
        model=model.name,
        priority=model.priority,
        min_replicas=model.bounds.min_replicas,
        wanted=replicas,
        gpus_per_node=model.gpus_per_node,
        nodes=model.nodes,
        gpu_type=model.gpu_type,
    )


def _free(model: ModelPlan, reports: Reports, nodes: Sequence[Node]) -> dict[str, int]:
    """The free GPUs of each node that the model may run on; an expired replica holds none."""
    held = Counter({node.name: 0 for node in nodes})
    for _, report in reports:
        held[report.node] += len(report.devices)
    return {it.name: it.gpus_total - held[it.name] for it in nodes if model.gpu_type in (None, it.gpu_type)}


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


def _without_lines(signals: Sequence[ReplicaSignal], lines: int) -> list[ReplicaSignal]:
    """The signals as if batches' lines were not there: each replica is taken to have its share of them."""
    share = max(0.0, 1.0 - lines / max(1, sum(it.running_requests + it.waiting_requests for it in signals)))
    return [
        msgspec.structs.replace(
            it,
            running_requests=round(share * it.running_requests),
            waiting_requests=round(share * it.waiting_requests),
            queued_prefill_tokens=round(share * it.queued_prefill_tokens),
            kv_cache_used_ratio=share * it.kv_cache_used_ratio,
        )
        for it in signals
    ]


class Arrivals:
    """What gateways have reported: arrived tokens add up between two decisions; waiting calls are those of the last reports."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._arrived: dict[str, tuple[float, float]] = {}

    def record(self, report: GatewayReport) -> None:
        """Add a report; of one that covers a long gap, only the share of the last seconds."""
        share = COVERED_MAX_S / max(report.covers_s, COVERED_MAX_S)
        for name, traffic in report.traffic.items():
            prompt, output = self._arrived.get(name, (0.0, 0.0))
            prompt += share * traffic.arrived_prompt_tokens
            output += share * traffic.expected_output_tokens
            self._arrived[name] = (prompt, output)

    def demand(self, reports: Iterable[GatewayReport], now: float) -> dict[str, Demand]:
        """The demand for every reported model."""
        elapsed_s = max(now - self._since, DECISION_INTERVAL_S)
        held: dict[str, list[Traffic]] = {name: [] for name in self._arrived}
        for report in reports:
            for name, traffic in report.traffic.items():
                held.setdefault(name, []).append(traffic)
        return {name: self._one(name, waiting, elapsed_s) for name, waiting in held.items()}

    def _one(self, name: str, traffic: Sequence[Traffic], elapsed_s: float) -> Demand:
        prompt, output = self._arrived.get(name, (0.0, 0.0))
        return Demand(
            waiting_requests=sum(it.waiting_requests for it in traffic),
            oldest_wait_s=max((it.oldest_wait_s for it in traffic), default=0.0),
            waiting_prompt_tokens=sum(it.waiting_prompt_tokens for it in traffic),
            arrived_prompt_tokens_per_s=prompt / elapsed_s,
            expected_output_tokens_per_s=output / elapsed_s,
            line_requests=sum(it.line_requests for it in traffic),
        )
