"""Policies: ours, and the two it is judged against, each as its documentation or source says."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from loadtest.scaling.model import ReplicaModel
from serving.budget.knee import ITL_SLO_S
from serving.catalog import Knee
from serving.engine.autoscale import COMING, TUNING, Bounds, Demand, Memory, ReplicaSignal, Tuning, wanted
from serving.wire import ReplicaState


def knee_of(model: ReplicaModel, startup_s: float, ttft_slo_s: float, itl_s: float = ITL_SLO_S) -> Knee:
    """What the profile would say of this replica: the largest batch within the gap that is promised."""
    running = model.batch_within(itl_s)
    return Knee(
        running_requests=running,
        prefill_tokens_per_s=model.chunk_tokens / model.step_s(0, model.chunk_tokens),
        decode_tokens_per_s=model.decode_tokens_per_s(running),
        startup_s=startup_s,
        ttft_slo_s=ttft_slo_s,
    )


@dataclass(slots=True)
class Ours:
    """serving.engine.autoscale, as the directory calls it."""

    knee: Knee
    bounds: Bounds
    tuning: Tuning = TUNING
    name: str = "ours"
    interval_s: float = 5.0
    _memory: Memory = field(default_factory=Memory)

    def wanted(self, signals: list[ReplicaSignal], demand: Demand, now: float) -> int:
        decision = wanted(signals, demand, self.bounds, self.knee, self._memory, now, self.tuning)
        self._memory = decision.memory
        return decision.replicas


def ongoing(signals: list[ReplicaSignal], demand: Demand) -> int:
    """Requests running, queued in replicas, and waiting before them."""
    return demand.waiting_requests + sum(signal.running_requests + signal.waiting_requests for signal in signals)


def _alive(signals: list[ReplicaSignal]) -> int:
    return sum(signal.state in COMING | {ReplicaState.READY} for signal in signals)


@dataclass(slots=True)
class ServeDefault:
    """Ray Serve 2.60's replica_queue_length_autoscaling_policy with its default delays and no smoothing.

    Source: ray/serve/autoscaling_policy.py, `_core_replica_queue_length_policy`, `_apply_delay_logic` (a test compares).
    Requests are averaged over look_back_period_s. Decided by Serve: here every five seconds instead of ten times in one.
    """

    target_ongoing_requests: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    look_back_s: float = 30.0
    name: str = "Serve default"
    interval_s: float = 5.0
    _reports: deque[tuple[float, int]] = field(default_factory=deque)
    _target: int | None = None
    #: Since when, and whether up (1) or down (-1), another number has been desired.
    _direction: int = 0
    _since: float = 0.0

    def wanted(self, signals: list[ReplicaSignal], demand: Demand, now: float) -> int:
        self._reports.append((now, ongoing(signals, demand)))
        while self._reports[0][0] <= now - self.look_back_s:
            self._reports.popleft()
        mean = sum(requests for _, requests in self._reports) / len(self._reports)
        running = sum(signal.state is ReplicaState.READY for signal in signals)
        if self._target is None:
            self._target = max(1, _alive(signals))
        self._target = self.decide(mean, running, self._target, now)
        return self._target

    def decide(self, requests: float, running: int, target: int, now: float) -> int:
        """Serve's decision with factors of 1: `requests` averaged, `running` replicas, the last `target`."""
        if running == 0:
            return max(1, target) if requests > 0 else target
        desired = math.ceil(running + (requests / self.target_ongoing_requests - running))
        direction = (desired > target) - (desired < target)
        if direction != self._direction or direction == 0:
            self._direction, self._since = direction, now
        delay_s = self.upscale_delay_s if direction > 0 else self.downscale_delay_s
        if direction == 0 or now - self._since < delay_s:
            return target
        self._direction = 0
        return desired if direction > 0 or target == 1 else max(1, desired)


@dataclass(slots=True)
class Hpa:
    """Kubernetes' HorizontalPodAutoscaler on requests per pod, its documented defaults.

    Every 15 s: ceil(pods * value / target), left alone within a tolerance of 10 %; up at most by the greater of
    100 % and 4 pods in 15 s; down to the highest recommendation of the last 300 s.
    Source: kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale (algorithm, default behavior).
    """

    target_requests: float
    name: str = "HPA on requests"
    interval_s: float = 15.0
    _recommended: deque[tuple[float, int]] = field(default_factory=deque)

    def wanted(self, signals: list[ReplicaSignal], demand: Demand, now: float) -> int:
        pods = max(1, _alive(signals))
        ratio = ongoing(signals, demand) / (self.target_requests * pods)
        desired = pods if abs(ratio - 1) <= 0.1 else max(1, math.ceil(pods * ratio))
        desired = min(desired, max(2 * pods, pods + 4))
        self._recommended.append((now, desired))
        while self._recommended[0][0] <= now - 300:
            self._recommended.popleft()
        return desired if desired > pods else min(pods, max(value for _, value in self._recommended))
