"""Gathering: what calls leave in memory until it is written, bounded in each part: calls, sign-ins, refusals, acts that change nothing.

The event loop puts facts in; one thread at a time takes them out as entries, and forgets them once they are written.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable

import msgspec

from serving.gateway.audit.actors import Actor
from serving.gateway.audit.chain import Kind
from serving.gateway.audit.journal import body_of
from serving.gateway.identity.acts import Act
from serving.gateway.nouns import Caller, CallRecord

#: Calls of one entry; about 200 bytes each.
CALLS_PER_ENTRY = 500
#: Calls that wait while the store is away, and beyond which they are only counted: a minute of 300 a second, some 8 MB.
CALLS_MAX = 20_000
#: Sign-ins that wait, and acts.
OTHERS_MAX = 2_000
#: Seconds without a call after which a caller's next one is a sign-in.
SIGN_IN_AGAIN_S = 3600.0
#: Callers whose last call is remembered.
CALLERS_MAX = 100_000
#: Seconds of refusals in one entry: however many keys are tried, there is one a minute.
REFUSED_S = 60.0
#: Reasons and keys that one such entry tells apart; what exceeds them is counted by its reason alone.
REFUSED_MAX = 100

_REFUSED_STATUSES = frozenset({401, 403})


class Call(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Who called which model when, and how it went; `at` in seconds since the epoch."""

    at: float
    tenant_id: str
    key_id: str
    model: str
    request_id: str
    outcome: str
    status: int
    user_ref: str | None = None


class SignIn(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A key's or a user's first call at this gateway in a while."""

    at: float
    tenant_id: str
    key_id: str
    user_ref: str | None = None


class Refused(msgspec.Struct, frozen=True, omit_defaults=True):
    """How often callers were refused for one reason; with their key where that is in order and may not do this."""

    reason: str
    count: int
    tenant_id: str = ""
    key_id: str = ""


class CallsBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of an entry of calls; `lost` are those of which nothing else is known."""

    calls: list[Call]
    lost: int = 0


class SignInsBody(msgspec.Struct, frozen=True):
    sign_ins: list[SignIn]


class RefusedBody(msgspec.Struct, frozen=True):
    refused: list[Refused]


_Reason = tuple[str, str, str]


class Batch(msgspec.Struct, frozen=True):
    """What is written together: entries, each a kind and a body, and what they are made of."""

    entries: list[tuple[str, str]]
    calls: int
    sign_ins: int
    acts: int
    refused: Counter[_Reason]
    lost: int


class Gathering:
    """What waits to be written."""

    def __init__(self, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._calls: list[Call] = []
        self._sign_ins: list[SignIn] = []
        self._acts: list[tuple[Actor, Act]] = []
        self._refused: Counter[_Reason] = Counter()
        self._refused_at = monotonic()
        self._lost = 0
        # Around what both sides count.
        self._lock = threading.Lock()
        #: A caller's tenant, key and user → its last call.
        self._seen: OrderedDict[tuple[str, str, str | None], float] = OrderedDict()

    @property
    def waiting_calls(self) -> int:
        return len(self._calls)

    @property
    def has_refusals(self) -> bool:
        """Do refusals wait for their minute?"""
        return bool(self._refused)

    @property
    def lost(self) -> int:
        """Facts that found no room, and of which the next entry tells the number."""
        return self._lost

    def settle(self, record: CallRecord) -> bool:
        """A request is over; false where it left nothing to write."""
        caller, is_new = record.caller, False
        if caller is not None:
            is_new = self._see(caller)
            if record.entry_id:
                self._put(record, caller)
                is_new = True
        if record.status in _REFUSED_STATUSES:
            self._refuse(record.reason, caller)
            return True
        return is_new

    def note(self, actor: Actor, act: Act) -> None:
        """An act that changes nothing."""
        if len(self._acts) < OTHERS_MAX:
            self._acts.append((actor, act))
        else:
            self._lose()

    def batch(self, *, is_last: bool = False) -> Batch:
        """What to write next; without entries when there is nothing."""
        calls, sign_ins, acts = self._calls[:CALLS_PER_ENTRY], self._sign_ins[:], self._acts[:]
        refused, lost = self._due_refusals(is_last=is_last), self._lost
        entries = [(str(act.kind), body_of(actor, act)) for actor, act in acts]
        if sign_ins:
            entries.append((Kind.SIGN_INS, _json(SignInsBody(sign_ins))))
        if refused:
            told = [Refused(reason, count, tenant, key) for (reason, tenant, key), count in sorted(refused.items())]
            entries.append((Kind.REFUSED, _json(RefusedBody(told))))
        if calls or lost:
            entries.append((Kind.CALLS, _json(CallsBody(calls, lost))))
        return Batch(entries, len(calls), len(sign_ins), len(acts), refused, lost)

    def forget(self, batch: Batch) -> None:
        """It is written."""
        del self._calls[: batch.calls], self._sign_ins[: batch.sign_ins], self._acts[: batch.acts]
        with self._lock:
            self._lost -= batch.lost
            if batch.refused:
                # What came meanwhile stays.
                self._refused -= batch.refused
                self._refused_at = self._monotonic()

    def _see(self, caller: Caller) -> bool:
        """Is it long since this caller's last call?"""
        who = (caller.tenant_id, caller.key_id, caller.user_ref)
        now, last = self._monotonic(), self._seen.get(who)
        self._seen[who] = now
        if last is not None and now - last < SIGN_IN_AGAIN_S:
            return False
        self._seen.move_to_end(who)
        if len(self._seen) > CALLERS_MAX:
            self._seen.popitem(last=False)
        if len(self._sign_ins) < OTHERS_MAX:
            self._sign_ins.append(SignIn(round(self._clock(), 3), *who))
        else:
            self._lose()
        return True

    def _put(self, record: CallRecord, caller: Caller) -> None:
        if len(self._calls) >= CALLS_MAX:
            self._lose()
            return
        self._calls.append(
            Call(
                round(record.opened_at_epoch_s, 3),
                caller.tenant_id,
                caller.key_id,
                record.model or "",
                record.request_id,
                record.outcome,
                record.status,
                caller.user_ref,
            )
        )

    def _refuse(self, reason: str, caller: Caller | None) -> None:
        who = (reason, caller.tenant_id, caller.key_id) if caller else (reason, "", "")
        with self._lock:
            is_room = who in self._refused or len(self._refused) < REFUSED_MAX
            self._refused[who if is_room else (reason, "", "")] += 1

    def _lose(self) -> None:
        with self._lock:
            self._lost += 1

    def _due_refusals(self, *, is_last: bool) -> Counter[_Reason]:
        with self._lock:
            is_due = is_last or self._monotonic() - self._refused_at >= REFUSED_S
            return self._refused.copy() if is_due else Counter()


def _json(body: msgspec.Struct) -> str:
    return msgspec.json.encode(body).decode()
