"""What policies cost one call, in CPU time of this process: to identify its caller, reserve, admit and settle.

    python -m loadtest.policy_bench

Counters are in memory and caches warm. Calls of tenants without policies are the measure: they do what was done before there were
any. Then every limit there is, on the tenant, its key and the model; and the same among 10,000 tenants with 100,000 keys.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from serving.config import GatewaySettings
from serving.gateway.admission.admission import Admission
from serving.gateway.admission.counters.memory import MemoryCounters
from serving.gateway.admission.estimates import Estimates
from serving.gateway.admission.reservations import Reservations
from serving.gateway.dialects import call as calls
from serving.gateway.dialects.chat import CHAT
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.http.asgi import Header
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.records import Wanted
from serving.gateway.identity.registry import Registry
from serving.gateway.identity.tenants import Tenants
from serving.gateway.ledger.prices import Price
from serving.gateway.nouns import CallRecord, Usage
from serving.gateway.policies import NO_POLICY, Budget, Limits, Policy
from serving.gateway.store.store import Store
from serving.wire import DirectoryAnswer, Listed, ReplicaReport, ReplicaState

ROUNDS = 9
CALLS = 2_000
FEW_TENANTS, MANY_TENANTS, KEYS_EACH = 10, 10_000, 10
MODEL = "gpt-oss-120b"
BODY = b'{"model":"gpt-oss-120b","messages":[{"role":"user","content":"Hello"}],"max_tokens":100}'
MUCH = 10**9
LIMITS = Limits(requests_per_minute=MUCH, tokens_per_minute=MUCH, tokens_per_day=MUCH, open_requests=MUCH)
#: A team's usual policy, and everything at once.
USUAL = Policy(requests_per_minute=MUCH, tokens_per_minute=MUCH, open_requests=MUCH, monthly_budget=Budget(hard=1e8))
EVERY = Policy(
    requests_per_minute=MUCH,
    tokens_per_minute=MUCH,
    tokens_per_day=MUCH,
    tokens_per_month=MUCH,
    open_requests=MUCH,
    monthly_budget=Budget(soft=1e7, hard=1e8),
    per_model={MODEL: LIMITS},
)
PRICE = Price(150_000, 75_000, 600_000)


class Answer:
    """Takes headers, as an answer does."""

    is_anthropic = False

    def announce(self, *headers: Header) -> None:
        pass


class Installation:
    """A store with tenants and keys, and a gateway's policies before it."""

    def __init__(self, opened: ExitStack, home: Path, tenants: int, tenant_policy: Policy, key_policy: Policy) -> None:
        home.mkdir()
        store = opened.enter_context(Store.open(home))
        keyring = Keyring.open(store)
        registry = Registry(store, keyring, time.time)
        names = [f"tenant-{number}" for number in range(tenants)]
        self.keys: list[str] = []
        for name in names:
            registry.create_tenant(name, tenant_policy)
            self.keys += registry.create_keys(name, KEYS_EACH, Wanted(policy=key_policy))
        self.tenants = opened.enter_context(Tenants(store, keyring, key_cache_s=3600, lookup_timeout_s=10))
        demands = Demands(time.monotonic)
        fleet = Fleet((), demands, time.monotonic, time.time)
        reports = [ReplicaReport(f"r{n}", MODEL, f"http://10.0.0.{n}:8000", ReplicaState.READY) for n in range(4)]
        fleet.take(DirectoryAnswer("cell", "1", True, tuple(Listed(it, 0.1) for it in reports)), time.monotonic())
        estimates = Estimates()
        estimates.kept(MODEL, CHAT.path)
        counters = MemoryCounters(lambda: time.time_ns() // 1_000)
        self.admission = Admission(fleet, demands, estimates, GatewaySettings(), time.monotonic)
        self.reservations = Reservations(counters, lambda *_: PRICE, estimates, time.time)
        self.call = calls.read(CHAT, BODY).finish(MODEL, "salt")

    async def serve(self, keys: list[str]) -> None:
        """One call with each of these keys, all but reading it and asking an engine."""
        answer = Answer()
        for key in keys:
            record = CallRecord(request_id="r", started_at=0.0)
            record.caller = caller = await self.tenants.identify(key)
            async with self.reservations.held(caller, self.call, record, made=lambda: 0, answer=answer):
                with await self.admission.admit(self.call, record) as ticket:
                    replica = await ticket.replica(set())
                    with ticket.committed(replica.replica_id):
                        record.replica_id = replica.replica_id
                        record.usage = Usage(70, 40)


def measured(installations: dict[str, Installation]) -> dict[str, list[float]]:
    """Microseconds a call, of rounds that alternate."""
    taken: dict[str, list[float]] = {name: [] for name in installations}
    for one in installations.values():
        asyncio.run(one.serve(one.keys))
    for turn in range(ROUNDS):
        for name, one in installations.items():
            first = turn * CALLS % len(one.keys)
            keys = (one.keys * (CALLS // len(one.keys) + 2))[first : first + CALLS]
            taken[name].append(_cpu_s(lambda one=one, keys=keys: asyncio.run(one.serve(keys))) / CALLS * 1e6)  # type: ignore[misc]
    return taken


def lines(taken: dict[str, list[float]]) -> Iterator[str]:
    first, *_ = taken
    for name, values in taken.items():
        ratio = statistics.median(its / plain for its, plain in zip(values, taken[first], strict=True))
        yield f"{name:58}{statistics.median(values):8.1f} us   ({min(values):.1f} to {max(values):.1f})   {ratio:.2f}x"


def _cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    with ExitStack() as opened, tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        installations = {
            "no policies": Installation(opened, home / "a", FEW_TENANTS, NO_POLICY, NO_POLICY),
            "four limits of the tenant": Installation(opened, home / "b", FEW_TENANTS, USUAL, NO_POLICY),
            "every limit of tenant, key and model (20 counters)": Installation(
                opened, home / "c", FEW_TENANTS, EVERY, EVERY
            ),
            "four limits, 10,000 tenants, 100,000 keys": Installation(
                opened, home / "d", MANY_TENANTS, USUAL, NO_POLICY
            ),
        }
        for line in lines(measured(installations)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
