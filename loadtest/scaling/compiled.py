"""Compiled: `simulator.run` in machine code. The same to the call, which a test compares; under a microsecond a call.

The state of `simulator.Fleet` and of its replicas in arrays: a row for each replica, and calls by their number. Ticks
run compiled between two questions to the policy, which stays Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from loadtest.scaling.columns import Calls, Floats, Integers
from loadtest.scaling.simulator import LEARNING, TICK_S, Policy, Settings, SimulationResult
from serving.engine.autoscale import Demand, ReplicaSignal
from serving.wire import ReplicaState

Function = TypeVar("Function", bound=Callable[..., Any])

#: Machine code, kept beside this file for the next process.
_machine_code = cast(Callable[[Function], Function], numba.njit(cache=True))
#: A running request in its replica's heap: the step at which it ends, above the number of its call.
_CALL_BITS = 32
#: Columns of the tally.
_COMING, _SHED, _MET, _TTFT_MISSED, _ITL_MISSED, _REPLICAS, _WAITING, _REPLICA_TICKS, _MOST, _COLUMNS = range(10)


class _Replicas(NamedTuple):
    """A row each, in no order; `order` names those that exist by age."""

    order: Integers
    is_used: NDArray[np.bool_]
    is_draining: NDArray[np.bool_]
    ready_at: Floats
    now: Floats
    steps: Integers
    #: Prompt tokens of the first call in the queue that are computed.
    computed: Integers
    committed: Integers
    kv: Integers
    queued_tokens: Integers
    #: A ring of calls whose prompt is not computed: first, length.
    first: Integers
    queued: Integers
    queue: Integers
    #: A heap of running requests.
    running: Integers
    heap: Integers


def _rows(count: int, places: int) -> _Replicas:
    """Of that many replicas that do not exist yet, with room for `places` requests each."""
    return _Replicas(
        order=np.zeros(count, np.int64),
        is_used=np.zeros(count, np.bool_),
        is_draining=np.zeros(count, np.bool_),
        ready_at=np.zeros(count),
        now=np.zeros(count),
        steps=np.zeros(count, np.int64),
        computed=np.zeros(count, np.int64),
        committed=np.zeros(count, np.int64),
        kv=np.zeros(count, np.int64),
        queued_tokens=np.zeros(count, np.int64),
        first=np.zeros(count, np.int64),
        queued=np.zeros(count, np.int64),
        queue=np.zeros((count, places), np.int64),
        running=np.zeros(count, np.int64),
        heap=np.zeros((count, places), np.int64),
    )


class _World(NamedTuple):
    """Model, SLO and gateway in plain numbers."""

    prefill_tokens_per_s: float
    base_s: float
    per_request_s: float
    experts_s: float
    untouched: float
    kv_cache_tokens: int
    max_running: int
    chunk_tokens: int
    kv_fixed_tokens: int
    ttft_s: float
    ttft_per_prefill: float
    itl_s: float
    patience_s: float


def _world(settings: Settings) -> _World:
    model, slo = settings.model, settings.slo
    return _World(
        model.prefill_tokens_per_s,
        model.base_s,
        model.per_request_s,
        model.experts_s,
        model.untouched,
        model.kv_cache_tokens,
        model.max_running,
        model.chunk_tokens,
        model.kv_fixed_tokens,
        slo.ttft_s,
        slo.ttft_per_prefill,
        slo.itl_s,
        settings.patience_s,
    )


@_machine_code
def _step_s(world: _World, running: int, prompt_tokens: int) -> float:
    experts_s = world.experts_s * (1 - world.untouched ** (running + prompt_tokens))
    return world.base_s + experts_s + world.per_request_s * running + prompt_tokens / world.prefill_tokens_per_s


@_machine_code
def _push(heap: Integers, size: int, key: int) -> None:
    place = size
    while place and heap[(place - 1) // 2] > key:
        heap[place] = heap[(place - 1) // 2]
        place = (place - 1) // 2
    heap[place] = key


@_machine_code
def _pop(heap: Integers, size: int) -> None:
    """Take the least away, which is heap[0]."""
    key, place = heap[size - 1], 0
    while True:
        child = 2 * place + 1
        if child >= size - 1:
            break
        if child + 1 < size - 1 and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = key


@_machine_code
def _kv_of(calls: Calls, call: int, world: _World) -> int:
    return int(calls.prompt_tokens[call] + calls.output_tokens[call] + world.kv_fixed_tokens)


@_machine_code
def _has_prompt(rows: _Replicas, row: int, now: float, joined: int, calls: Calls, world: _World) -> bool:
    if rows.queued[row] == 0:
        return False
    call = rows.queue[row, rows.first[row]]
    if calls.arrived_at[call] > now:
        return False
    running = rows.running[row] + joined
    has_room = rows.kv[row] + _kv_of(calls, call, world) <= world.kv_cache_tokens
    return bool(running == 0 or (running < world.max_running and has_room))


@_machine_code
def _steps_of_one_prompt(rows: _Replicas, row: int, now: float, end: float, calls: Calls, world: _World) -> float:
    room = max(1, world.chunk_tokens - rows.running[row])
    steps = (calls.prompt_tokens[rows.queue[row, rows.first[row]]] - rows.computed[row] - 1) // room
    if rows.running[row]:
        steps = min(steps, (rows.heap[row, 0] >> _CALL_BITS) - rows.steps[row] - 1)
    step_s = _step_s(world, rows.running[row], room)
    steps = min(steps, int((end - now) / step_s))
    rows.computed[row] += steps * room
    rows.queued_tokens[row] -= steps * room
    rows.steps[row] += steps
    return float(now + steps * step_s)


@_machine_code
def _step_with_prompts(rows: _Replicas, row: int, now: float, calls: Calls, world: _World) -> float:
    budget = max(1, world.chunk_tokens - rows.running[row])
    room, first, computed = budget, rows.first[row], 0
    while room and _has_prompt(rows, row, now, computed, calls, world):
        call = rows.queue[row, rows.first[row]]
        missing = calls.prompt_tokens[call] - rows.computed[row]
        if missing > room:
            rows.computed[row] += room
            room = 0
            break
        room -= missing
        rows.computed[row] = 0
        rows.first[row] = (rows.first[row] + 1) % rows.queue.shape[1]
        rows.queued[row] -= 1
        rows.kv[row] += _kv_of(calls, call, world)
        computed += 1
    rows.queued_tokens[row] -= budget - room
    now += _step_s(world, rows.running[row] + computed, budget - room)
    rows.steps[row] += 1
    for place in range(computed):
        call = rows.queue[row, (first + place) % rows.queue.shape[1]]
        ends_at = rows.steps[row] + calls.output_tokens[call] - 1
        _push(rows.heap[row], rows.running[row], (ends_at << _CALL_BITS) | call)
        rows.running[row] += 1
        calls.first_token_at[call] = now
    return now


@_machine_code
def _steps_without(rows: _Replicas, row: int, now: float, end: float, calls: Calls, world: _World) -> float:
    if rows.queued[row] and calls.arrived_at[rows.queue[row, rows.first[row]]] > now:
        end = min(end, calls.arrived_at[rows.queue[row, rows.first[row]]])
    if rows.running[row] == 0:
        return end
    step_s = _step_s(world, rows.running[row], 0)
    steps = min(math.ceil((end - now) / step_s), (rows.heap[row, 0] >> _CALL_BITS) - rows.steps[row])
    rows.steps[row] += steps
    return float(now + steps * step_s)


@_machine_code
def _finish(
    rows: _Replicas, row: int, now: float, calls: Calls, world: _World, tally: Integers, mean_output: Floats
) -> None:
    while rows.running[row] and (rows.heap[row, 0] >> _CALL_BITS) <= rows.steps[row]:
        call = rows.heap[row, 0] & ((1 << _CALL_BITS) - 1)
        _pop(rows.heap[row], rows.running[row])
        rows.running[row] -= 1
        rows.kv[row] -= _kv_of(calls, call, world)
        prompt, output = calls.prompt_tokens[call], calls.output_tokens[call]
        rows.committed[row] -= prompt + output
        mean_output[0] = output if mean_output[0] < 0 else mean_output[0] + (output - mean_output[0]) * LEARNING
        first_token_at = calls.first_token_at[call]
        limit_s = world.ttft_s + world.ttft_per_prefill * prompt / world.prefill_tokens_per_s
        if first_token_at - calls.arrived_at[call] > limit_s:
            tally[_TTFT_MISSED] += 1
        elif (now - first_token_at) / max(1, output - 1) > world.itl_s:
            tally[_ITL_MISSED] += 1
        else:
            tally[_MET] += 1


@_machine_code
def _route(rows: _Replicas, calls: Calls, world: _World, tally: Integers, now: float) -> None:
    while tally[_WAITING] < tally[_COMING] and calls.arrived_at[tally[_WAITING]] < now - world.patience_s:
        tally[_WAITING] += 1
        tally[_SHED] += 1
    while tally[_WAITING] < tally[_COMING]:
        best = -1
        for place in range(tally[_REPLICAS]):
            row = rows.order[place]
            if rows.ready_at[row] > now or rows.is_draining[row]:
                continue
            if rows.queued[row] + rows.running[row] >= world.max_running:
                continue
            if best < 0 or rows.committed[row] < rows.committed[best]:
                best = row
        if best < 0:
            return
        call = tally[_WAITING]
        rows.queue[best, (rows.first[best] + rows.queued[best]) % rows.queue.shape[1]] = call
        rows.queued[best] += 1
        rows.committed[best] += calls.prompt_tokens[call] + calls.output_tokens[call]
        rows.queued_tokens[best] += calls.prompt_tokens[call]
        tally[_WAITING] += 1


@_machine_code
def _advance(
    rows: _Replicas, calls: Calls, world: _World, tally: Integers, mean_output: Floats, start: float, end: float
) -> None:
    kept = 0
    tally[_REPLICA_TICKS] += tally[_REPLICAS]
    tally[_MOST] = max(tally[_MOST], tally[_REPLICAS])
    for place in range(tally[_REPLICAS]):
        row = rows.order[place]
        if rows.queued[row] + rows.running[row]:
            now = max(rows.now[row], start)
            while now < end and rows.queued[row] + rows.running[row]:
                if _has_prompt(rows, row, now, 0, calls, world):
                    now = _steps_of_one_prompt(rows, row, now, end, calls, world)
                    now = _step_with_prompts(rows, row, now, calls, world)
                else:
                    now = _steps_without(rows, row, now, end, calls, world)
                _finish(rows, row, now, calls, world, tally, mean_output)
            rows.now[row] = now
        if rows.is_draining[row] and rows.queued[row] + rows.running[row] == 0:
            rows.is_used[row] = False
        else:
            rows.order[kept] = row
            kept += 1
    tally[_REPLICAS] = kept


@_machine_code
def _ticks(
    rows: _Replicas,
    calls: Calls,
    world: _World,
    tally: Integers,
    mean_output: Floats,
    first: int,
    last: int,
    missed_at_most: float,
) -> int:
    """Ticks from `first` to before `last`; the first not run: an earlier one when the trace is over or the run given up."""
    for tick in range(first, last):
        missed = tally[_SHED] + tally[_TTFT_MISSED] + tally[_ITL_MISSED]
        if tally[_COMING] == len(calls.arrived_at) or missed > missed_at_most:
            return tick
        start, end = tick * TICK_S, (tick + 1) * TICK_S
        while tally[_COMING] < len(calls.arrived_at) and calls.arrived_at[tally[_COMING]] < end:
            tally[_COMING] += 1
        _route(rows, calls, world, tally, start)
        _advance(rows, calls, world, tally, mean_output, start, end)
    return last


class Fleet:
    """What the policy sees of the arrays, and does to them."""

    def __init__(self, calls: Calls, settings: Settings) -> None:
        self._settings = settings
        self._calls = calls
        self._world = _world(settings)
        self._rows = _rows(max(1, settings.max_replicas), settings.model.max_running)
        self._tally = np.zeros(_COLUMNS, np.int64)
        self._mean_output = np.full(1, -1.0)
        #: Calls whose arrival has been reported to the policy.
        self._reported = 0
        self._start(settings.initial_replicas, ready_at=0.0)

    def run(self, first_tick: int, last_tick: int, missed_at_most: float) -> int:
        return _ticks(
            self._rows, self._calls, self._world, self._tally, self._mean_output, first_tick, last_tick, missed_at_most
        )

    def _start(self, count: int, ready_at: float) -> None:
        while count > np.count_nonzero(~self._rows.is_used):
            more = _rows(len(self._rows.order), self._settings.model.max_running)
            self._rows = _Replicas(*(np.concatenate(both) for both in zip(self._rows, more, strict=True)))
        for row in np.flatnonzero(~self._rows.is_used)[: max(0, count)]:
            for field in self._rows[1:]:
                field[row] = 0
            self._rows.is_used[row], self._rows.ready_at[row] = True, ready_at
            self._rows.order[self._tally[_REPLICAS]] = row
            self._tally[_REPLICAS] += 1

    def scale(self, wanted: int, now: float) -> None:
        """Start what is missing; drain what is too many, those on their way first, then those with least inside."""
        rows = self._rows.order[: self._tally[_REPLICAS]]
        kept = rows[~self._rows.is_draining[rows]]
        self._start(wanted - len(kept), now + self._settings.startup_s)
        surplus = kept[np.lexsort((self._rows.committed[kept], self._rows.ready_at[kept] <= now))]
        self._rows.is_draining[surplus[: max(0, len(kept) - wanted)]] = True

    def signals(self, now: float) -> list[ReplicaSignal]:
        fleet = self._rows
        rows = fleet.order[: self._tally[_REPLICAS]]
        ready, draining = (fleet.ready_at[rows] <= now).tolist(), fleet.is_draining[rows].tolist()
        running, waiting = fleet.running[rows].tolist(), fleet.queued[rows].tolist()
        queued, kv = (
            fleet.queued_tokens[rows].tolist(),
            (fleet.kv[rows] / self._settings.model.kv_cache_tokens).tolist(),
        )
        return [
            ReplicaSignal(
                replica_id=str(row),
                state=_state(ready[place], draining[place]),
                running_requests=running[place],
                waiting_requests=waiting[place],
                queued_prefill_tokens=queued[place],
                kv_cache_used_ratio=kv[place],
            )
            for place, row in enumerate(rows.tolist())
        ]

    def demand(self, now: float, since_s: float) -> Demand:
        """What gateways report; the arrivals since the last call of this, `since_s` ago."""
        calls, waiting, coming = self._calls, int(self._tally[_WAITING]), int(self._tally[_COMING])
        arrived, self._reported = slice(self._reported, coming), coming
        return Demand(
            waiting_requests=coming - waiting,
            oldest_wait_s=now - float(calls.arrived_at[waiting]) if waiting < coming else 0.0,
            waiting_prompt_tokens=int(calls.prompt_tokens[waiting:coming].sum()),
            arrived_prompt_tokens_per_s=int(calls.prompt_tokens[arrived].sum()) / since_s,
            expected_output_tokens_per_s=(arrived.stop - arrived.start)
            / since_s
            * max(0.0, float(self._mean_output[0])),
        )

    def result(self, changes: int) -> SimulationResult:
        tally, rows = self._tally, self._rows.order[: self._tally[_REPLICAS]]
        inside = self._rows.queued[rows].sum() + self._rows.running[rows].sum()
        return SimulationResult(
            arrived=int(tally[_COMING]),
            met=int(tally[_MET]),
            ttft_missed=int(tally[_TTFT_MISSED]),
            itl_missed=int(tally[_ITL_MISSED]),
            shed=int(tally[_SHED]),
            unfinished=int(tally[_COMING] - tally[_WAITING] + inside),
            gpu_s=float(tally[_REPLICA_TICKS]) * self._settings.model.gpus * TICK_S,
            changes=changes,
            most_replicas=int(tally[_MOST]),
        )


def _state(is_ready: bool, is_draining: bool) -> ReplicaState:
    if not is_ready:
        return ReplicaState.LOADING
    return ReplicaState.DRAINING if is_draining else ReplicaState.READY


def run(calls: Calls, policy: Policy, settings: Settings, missed_at_most: float = math.inf) -> SimulationResult:
    """Drive one policy through one trace, as `simulator.run` does; it is asked every so many whole ticks."""
    fleet, interval = Fleet(calls, settings), round(policy.interval_s / TICK_S)
    wanted, tick, changes = settings.initial_replicas, 0, 0
    while fleet.run(tick, tick + interval, missed_at_most) == tick + interval:
        tick += interval
        now = tick * TICK_S
        asked = policy.wanted(fleet.signals(now), fleet.demand(now, policy.interval_s), now)
        asked = max(0, min(settings.max_replicas, asked))
        fleet.scale(asked, now)
        changes, wanted = changes + (asked != wanted), asked
    return fleet.result(changes)
