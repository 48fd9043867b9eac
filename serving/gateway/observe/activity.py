"""Activity: what this process did in the last hour, in slots of seconds, for people who look at it now. Prometheus has the rest.

A slot is made when a call ends in it: at rest nothing runs.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable

import msgspec

from serving.config import Slo
from serving.gateway.nouns import CallRecord, Outcome
from serving.gateway.observe.slo import Verdict, judge_call

#: Seconds of a slot, and slots that are kept: an hour.
SLOT_S = 15
SLOTS = 240
#: Models of one slot; a call of a further one is not shown.
MODELS_MAX = 256
#: Times to a first token are kept to 5 % up or down: each bucket's upper bound is so many times its lower one.
_STEP = math.log(1.1)


class Did(msgspec.Struct):
    """What calls of one model came to in one slot."""

    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: Calls that an SLO judges, and those of them that kept it.
    judged: int = 0
    kept: int = 0
    #: Bucket of the time to the first token → streams.
    first_tokens: dict[int, int] = {}

    def add(self, other: Did) -> None:
        """Another process did this in the same slot."""
        for name in ("requests", "failed", "prompt_tokens", "completion_tokens", "judged", "kept"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first_tokens = dict(Counter(self.first_tokens) + Counter(other.first_tokens))

    def ttft_s(self, share: float) -> float | None:
        """Seconds within which that share of the streams had its first token."""
        left = share * sum(self.first_tokens.values())
        for bucket in sorted(self.first_tokens):
            left -= self.first_tokens[bucket]
            if left <= 0:
                return round(math.exp((bucket + 0.5) * _STEP), 4)
        return None


class Slot(msgspec.Struct):
    """One slot: its number since the epoch, and what was done in it by model."""

    number: int
    did: dict[str, Did]


class Activity:
    """The last hour of one process. `clock` in seconds since the epoch, so that several can be laid on one another."""

    def __init__(self, slo_of: Callable[[str], Slo], clock: Callable[[], float]) -> None:
        self._slo_of = slo_of
        self._clock = clock
        self._slots: deque[Slot] = deque(maxlen=SLOTS)

    def settle(self, record: CallRecord) -> None:
        """A request is over."""
        if not (record.route.is_billed and record.is_model_listed and record.model):
            return
        slot = self._now()
        did = slot.did.get(record.model)
        if did is None:
            if len(slot.did) >= MODELS_MAX:
                return
            did = slot.did[record.model] = Did(first_tokens={})
        self._count(did, record, record.model)

    def slots(self) -> list[Slot]:
        """Those of the last hour in which anything was done, the oldest first."""
        oldest = int(self._clock() // SLOT_S) - SLOTS
        return [slot for slot in self._slots if slot.number > oldest]

    def _now(self) -> Slot:
        number = int(self._clock() // SLOT_S)
        if not self._slots or self._slots[-1].number < number:
            self._slots.append(Slot(number, {}))
        return self._slots[-1]

    def _count(self, did: Did, record: CallRecord, model: str) -> None:
        usage, ttft_s = record.usage, record.ttft_s
        did.requests += 1
        did.failed += record.outcome is Outcome.FAILED
        did.prompt_tokens += usage.prompt_tokens
        did.completion_tokens += usage.completion_tokens
        if ttft_s is not None and record.outcome is Outcome.OK:
            bucket = math.floor(math.log(max(ttft_s, 1e-6)) / _STEP)
            did.first_tokens[bucket] = did.first_tokens.get(bucket, 0) + 1
        verdict = judge_call(self._slo_of(model), record)
        did.judged += verdict is not None
        did.kept += verdict is Verdict.MET


class Series(msgspec.Struct, frozen=True):
    """One model's hour, slot by slot, the oldest first."""

    name: str
    requests: list[int]
    failed: list[int]
    prompt_tokens: list[int]
    completion_tokens: list[int]
    ttft_p50_s: list[float | None]
    ttft_p95_s: list[float | None]
    judged: list[int]
    kept: list[int]


def merged(slots: Iterable[Slot]) -> dict[int, dict[str, Did]]:
    """Slots of several processes, laid on one another."""
    found: dict[int, dict[str, Did]] = {}
    for slot in slots:
        did = found.setdefault(slot.number, {})
        for model, of_model in slot.did.items():
            did.setdefault(model, Did(first_tokens={})).add(of_model)
    return found


def series(by_number: dict[int, dict[str, Did]], last: int) -> list[Series]:
    """By model, for the hour that ends with slot `last`."""
    models = sorted({model for did in by_number.values() for model in did})
    return [_series(model, [by_number.get(it, {}).get(model, _NOTHING) for it in _hour(last)]) for model in models]


_NOTHING = Did(first_tokens={})


def _hour(last: int) -> range:
    return range(last - SLOTS + 1, last + 1)


def _series(model: str, did: list[Did]) -> Series:
    return Series(
        model,
        [it.requests for it in did],
        [it.failed for it in did],
        [it.prompt_tokens for it in did],
        [it.completion_tokens for it in did],
        [it.ttft_s(0.5) for it in did],
        [it.ttft_s(0.95) for it in did],
        [it.judged for it in did],
        [it.kept for it in did],
    )
