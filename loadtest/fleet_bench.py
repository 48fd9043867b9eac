"""What a large installation costs one request, one poll and one decision, in CPU time of this thread.

    python -m loadtest.fleet_bench

A gateway before 1,000 replicas chooses one for calls with prefixes of 32 blocks (8,000 tokens) and without, gives them places, and takes in an answer;
the directory of a cell with them decides for 100 models; a key that is not cached is looked up in a SQLite store, and a token of single
sign-on that is not remembered is verified. Medians of rounds that alternate; no network is involved.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from serving.catalog import Knee
from serving.config import GatewaySettings, Issuer
from serving.engine.autoscale import Bounds
from serving.engine.directory import Listing
from serving.engine.scaling import ModelPlan, Plans
from serving.gateway.admission.line import Line, claim_of
from serving.gateway.dialects import conversation
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.fleet.router import Need
from serving.gateway.identity import jwks, oidc
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.identity.tenants import Tenants
from serving.gateway.nouns import Caller
from serving.gateway.store.store import Store
from serving.wire import DirectoryAnswer, EngineLoad, GatewayReport, Listed, ReplicaReport, ReplicaState

REPLICAS = 1_000
MODELS = 100
BLOCKS = 32
ROUNDS = 9
CALLS = 500
KEYS = 50
TENANTS = 100
MODEL = "model-0"


def replicas(turn: int, models: int = 1) -> Iterator[ReplicaReport]:
    """All of them, with other figures every turn."""
    for number in range(REPLICAS):
        load = EngineLoad(running_requests=(7 * number + turn) % 5, prefix_queried_tokens=1_000 * turn)
        url = f"http://10.0.{number // 250}.{number % 250}:8000"
        yield ReplicaReport(f"r{number:04}", f"model-{number % models}", url, ReplicaState.READY, load=load)


def answer(turn: int) -> DirectoryAnswer:
    return DirectoryAnswer("cell", "1", True, tuple(Listed(it, 0.1) for it in replicas(turn)))


def cpu_s(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def median_us(works: dict[str, Callable[[], object]], each: int) -> Iterator[str]:
    """One line for each, per one of `each`."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            taken[name].append(cpu_s(work) / each * 1e6)
    for name, values in taken.items():
        yield f"{name:58}{statistics.median(values):10.1f} us   ({min(values):.1f} to {max(values):.1f})"


def choosing() -> Iterator[str]:
    fleet = Fleet((), Demands(time.monotonic), time.monotonic, time.time, random_=random.Random(1).random)  # noqa: S311 -- No secret.
    turns = count()
    fleet.take(answer(next(turns)), time.monotonic())
    chance = random.Random(2)  # noqa: S311
    plain = [Need(100, 200.0)] * CALLS
    talks = [tuple(chance.getrandbits(64) for _ in range(BLOCKS)) for _ in range(CALLS)]
    prefixed = [Need(8_000, 200.0, prefix, 256.0) for prefix in talks]

    def choose(needs: list[Need]) -> None:
        for need in needs:
            fleet.best(MODEL, need)

    def send(needs: list[Need]) -> None:
        for need in needs:
            best = fleet.best(MODEL, need)
            if best:
                with fleet.committed(best.replica_id, need) as commitment:
                    commitment.begun()

    send(prefixed)
    yield from median_us(
        {
            f"choose one of {REPLICAS} replicas": lambda: choose(plain),
            f"the same, by a prefix of {BLOCKS} blocks": lambda: choose(prefixed),
            "choose, commit, first token, end": lambda: send(plain),
            f"the same, and remember {BLOCKS} blocks": lambda: send(prefixed),
        },
        CALLS,
    )
    parts = [{"role": "user", "content": "It was a bright cold day in April. " * 30}] * BLOCKS
    yield from median_us({f"hash {BLOCKS} blocks of a body": lambda: conversation.blocks(parts, "tenant")}, 1)
    answers = [answer(next(turns)) for _ in range(ROUNDS)]
    yield from median_us(
        {f"take in a directory's answer of {REPLICAS}": lambda: fleet.take(answers.pop(0), time.monotonic())}, 1
    )


def placing() -> Iterator[str]:
    """What a call pays for the queue in which it does not wait: a look at the room, its place and its tenant's counter, and their end."""
    demands = Demands(time.monotonic)
    fleet = Fleet((), demands, time.monotonic, time.time)
    line = Line(fleet, demands, GatewaySettings(), time.monotonic)
    fleet.take(answer(1), time.monotonic())
    callers = [Caller(f"t{number}", "acme", "k") for number in range(TENANTS)]

    def place() -> None:
        for number in range(CALLS):
            claim = claim_of(callers[number % TENANTS], MODEL, Need(100, 200.0), is_streamed=True)
            placed = line.place_at_once(claim)
            if placed:
                placed.begun()
                placed.leave(100, 150)

    yield from median_us({"a place in a fleet with room, and its end": place}, CALLS)


def deciding() -> Iterator[str]:
    ticks = count()
    listing = Listing("cell", "1", lambda: 100.0 + next(ticks) * 0.001)
    knee = Knee(
        prefill_tokens_per_s=30_000, decode_tokens_per_s=8_000, running_requests=64, kv_cache_ratio=0.9, startup_s=120
    )
    plans = [
        ModelPlan(name=f"model-{number}", context_tokens=8_192, bounds=Bounds(1, 50), knee=knee)
        for number in range(MODELS)
    ]
    listing.plan(Plans(models=tuple(plans)))
    for report in replicas(0, MODELS):
        listing.record(report)
    listing.record_gateway(GatewayReport("g", 1.0))

    def decide() -> None:
        now = 200.0
        listing._scaler.decide(list(listing._reports.values()), {}, (), now)

    yield from median_us(
        {
            f"the directory's decision, {REPLICAS} replicas of {MODELS} models": decide,
            "its answer to a gateway, as bytes": lambda: msgspec.json.encode(listing.answer()),
        },
        1,
    )


def identifying(home: Path) -> Iterator[str]:
    with Store.open(home) as store:
        keyring = Keyring.open(store)
        registry = Registry(store, keyring, time.time)
        registry.create_tenant("bench")
        keys = [registry.create_key("bench") for _ in range(KEYS)]
        with Tenants(store, keyring, key_cache_s=0.0, lookup_timeout_s=10) as tenants:

            async def looked_up() -> float:
                began = time.process_time()
                for key in keys:
                    await tenants.identify(key)
                return (time.process_time() - began) / KEYS * 1e6

            values = [asyncio.run(looked_up()) for _ in range(ROUNDS)]
            name = "identify a key that is not cached, all threads"
            yield f"{name:58}{statistics.median(values):10.1f} us   ({min(values):.1f} to {max(values):.1f})"


def verifying() -> Iterator[str]:
    rsa_key, curve_key = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())
    signers: dict[str, tuple[rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, str]] = {
        "RS256": (rsa_key, RSAAlgorithm.to_jwk(rsa_key.public_key())),
        "ES256": (curve_key, ECAlgorithm.to_jwk(curve_key.public_key())),
    }
    issuer = Issuer(issuer="https://sso.example.com", audiences=("bench",), tenant="bench")
    claims = {"iss": issuer.issuer, "aud": "bench", "sub": "ada", "iat": time.time(), "exp": time.time() + 3600}

    def verifies(algorithm: str) -> Callable[[], object]:
        key, published = signers[algorithm]
        token = jwt.encode(claims, key, algorithm, headers={"kid": "a"})
        known = jwks.read({"keys": [msgspec.json.decode(published) | {"kid": "a"}]}, issuer.algorithms)

        def verify() -> None:
            for _ in range(CALLS):
                heading = oidc.heading(token)
                oidc.verified(token, issuer, known[heading.key_id, oidc.algorithm(heading, issuer)])

        return verify

    yield from median_us({f"verify a token, {algorithm}": verifies(algorithm) for algorithm in signers}, CALLS)


def main() -> None:
    for line in choosing():
        print(line, flush=True)
    for line in placing():
        print(line, flush=True)
    for line in deciding():
        print(line, flush=True)
    for line in verifying():
        print(line, flush=True)
    with tempfile.TemporaryDirectory() as home:
        for line in identifying(Path(home)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
