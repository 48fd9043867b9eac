"""RedisTally: addresses, slots, the server's own time, and what goes wrong with a server."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serving.errors import Refusal
from serving.gateway.admission.counters import policy
from serving.gateway.admission.counters.counter import Draw, Kind, Verdict
from serving.gateway.admission.counters.policy import NEW
from serving.gateway.admission.counters.redis import CONNECTIONS, RedisTally, key
from serving.gateway.admission.counters.tally import Change, Part, TallyUnavailable
from serving.gateway.policies import COUNT_MAX
from tests.gateway import valkey
from tests.gateway.valkey import PASSWORD, Valkey

MINUTE_US = 60_000_000
DRAWS = [
    Draw("0a1b/tpm", Kind.RATE, COUNT_MAX, COUNT_MAX - 1, period_us=MINUTE_US),
    Draw("0a1b/day", Kind.WINDOW, COUNT_MAX, 1, ends_at_us=round((time.time() + 86_400) * 1e6)),
    Draw("0a1b/open", Kind.OPEN, 5, 1),
]


def tally(server: Valkey, *, is_cluster: bool = False) -> RedisTally:
    return RedisTally(server.url_file(), is_cluster=is_cluster, timeout_s=10)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "http://host:6379",
        "redis://",
        "redis://host:port/0",
        "redis://one:6379\nredis://two:6379",
        "postgresql://host/db",
        b"\xff\xfe",
    ],
)
def test_a_file_must_hold_an_address(tmp_path: Path, content: str | bytes) -> None:
    """Else the gateway does not start, and says what belongs there; not what is there."""
    path = tmp_path / "url"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Refusal, match=r"must hold one line like redis://") as refusal:
        RedisTally(path, is_cluster=False, timeout_s=1)
    assert "port/0" not in str(refusal.value)
    with pytest.raises(Refusal, match=r"cannot be read: no such file"):
        RedisTally(tmp_path / "none", is_cluster=False, timeout_s=1)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "valkeys"])
def test_redis_and_valkey_are_one(tmp_path: Path, scheme: str) -> None:
    """With TLS or without it."""
    path = tmp_path / "url"
    path.write_text(f"{scheme}://user:p%40ss@host:6379/0\n")
    RedisTally(path, is_cluster=True, timeout_s=1)


def test_a_tenants_counters_are_in_one_slot() -> None:
    """Its id is the hash tag of all of them."""
    assert key("0a1b/tokens_per_day/0/-/m{o}del") == "serving:{0a1b}/tokens_per_day/0/-/m{o}del"


async def test_the_servers_own_time_counts(alone: Valkey) -> None:
    """Gateways whose clocks differ agree."""
    alone.empty()
    it = tally(alone)
    await it.seed(DRAWS[1], 0, is_late=False)
    verdict = await it.reserve("a", DRAWS)
    assert isinstance(verdict, Verdict) and verdict.refused is None
    assert 80_000e6 < verdict.levels[1].resets_in_us <= 86_400e6
    assert verdict.levels[0].resets_in_us == MINUTE_US
    await it.close()


@pytest.mark.parametrize("is_cluster", [False, True])
async def test_a_server_that_has_forgotten_its_scripts_gets_them_again(
    request: pytest.FixtureRequest, *, is_cluster: bool
) -> None:
    """After a restart, or `SCRIPT FLUSH`."""
    server: Valkey = request.getfixturevalue("cluster" if is_cluster else "alone")
    it = tally(server, is_cluster=is_cluster)
    for lease in ("a", "b"):
        server.empty()
        assert isinstance(await it.reserve(lease, DRAWS[:1]), Verdict)
    await it.close()


async def test_all_keys_end(alone: Valkey) -> None:
    """What is idle takes no memory for long: buckets until they are full, leases while they last, windows until they end."""
    alone.empty()
    it = tally(alone)
    await it.seed(DRAWS[1], 0, is_late=False)
    await it.reserve("a", DRAWS)
    await it.apply([Change("b", tuple(Part(draw) for draw in DRAWS), is_final=True)])
    with alone.client() as client:
        ttls = {name: client.ttl(name) for name in client.scan_iter()}
    await it.close()
    assert len(ttls) == 4
    assert all(isinstance(ttl, int) and 60 <= ttl <= 86_500 for ttl in ttls.values()), ttls


async def test_a_server_that_is_gone_or_hangs_is_away() -> None:
    """In words without its address or password; and back when it is back, with another password too."""
    with valkey.running() as server:
        it = tally(server)
        await it.probe()
        server.hang()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await it.reserve("a", DRAWS[:1])
        server.wake()
        await it.probe()
        server.kill()
        with pytest.raises(TallyUnavailable) as error:
            await it.reserve("a", DRAWS[:1])
        assert str(server.port) not in error.value.reason and PASSWORD not in error.value.reason
        server.start()
        await it.probe()
        with server.client() as client:
            client.config_set("requirepass", "another")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with pytest.raises(TallyUnavailable) as error:
            await it.reserve("a", DRAWS[:1])
        assert "another" not in str(error.value)
        (server.folder / "url").write_text(server.url.replace(PASSWORD, "another"))
        await it.probe()
        await it.close()


async def test_a_file_that_is_replaced_may_hold_nothing_for_a_moment(alone: Valkey) -> None:
    """A probe fails then, as in an outage, and the next one finds the address that is there."""
    it = tally(alone)
    path = alone.folder / "url"
    path.write_text("")
    with pytest.raises(TallyUnavailable, match="its file holds no address"):
        await it.probe()
    path.write_text(alone.url)
    await it.probe()
    await it.close()


async def test_a_server_that_is_no_cluster_is_away(alone: Valkey) -> None:
    """Where a cluster is expected: redis-py's errors of clusters are none of its others."""
    it = tally(alone, is_cluster=True)
    with pytest.raises(TallyUnavailable):
        await it.reserve("a", DRAWS[:1])
    with pytest.raises(TallyUnavailable):
        await it.probe()
    await it.close()


@pytest.fixture(params=["alone", "cluster"])
async def emptied(request: pytest.FixtureRequest) -> AsyncIterator[RedisTally]:
    """One server, and a cluster."""
    server: Valkey = request.getfixturevalue(request.param)
    server.empty()
    it = tally(server, is_cluster=request.param == "cluster")
    yield it
    await it.close()


async def test_changes_of_one_lease_are_made_in_their_order(emptied: RedisTally) -> None:
    """And those of many calls at once, on few connections; a repetition changes nothing."""
    it, draw = emptied, DRAWS[1]
    await it.seed(draw, 0, is_late=False)
    changes = []
    for number in range(200):
        changes += [
            Change(f"lease {number}", (Part(draw, hold=7),)),
            Change(f"lease {number}", (Part(draw, add=3),), is_final=True, over_at_us=draw.ends_at_us),
            Change(f"lease {number}", (Part(draw, hold=9),)),
        ]
    await asyncio.gather(it.apply(changes), it.apply(changes))
    verdict = await it.reserve("a", [draw])
    assert isinstance(verdict, Verdict) and verdict.levels[0].remaining == COUNT_MAX - 600 - 1


async def test_more_decisions_than_connections_wait_for_one(emptied: RedisTally) -> None:
    """A burst is no outage."""
    verdicts = await asyncio.gather(*(emptied.reserve(str(number), DRAWS[:1]) for number in range(10 * CONNECTIONS)))
    assert all(isinstance(verdict, Verdict) for verdict in verdicts)


async def test_the_script_divides_to_the_unit(alone: Valkey) -> None:
    """Products of limits and times that no double holds: what has refilled at any time is what policy says."""
    alone.empty()
    now_us = 1_800_000_000_000_000
    it = RedisTally(alone.url_file(), is_cluster=False, timeout_s=10, clock_us=lambda: now_us)
    draw = Draw("0a1b/tpm", Kind.RATE, COUNT_MAX - 27, 1, period_us=MINUTE_US)
    state, seeded = NEW, random.Random(1)
    for number in range(300):
        now_us += seeded.randrange(MINUTE_US)
        # All that is left, or one more.
        amount = draw.limit - policy.lacking(draw, state, now_us) + number % 2
        more = Draw(draw.name, draw.kind, draw.limit, amount, draw.period_us)
        verdict, (state,) = policy.decide([more], [state], now_us)
        assert await it.reserve(str(number), [more]) == verdict
    await it.close()
