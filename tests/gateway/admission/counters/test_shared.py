"""SharedCounters: renewal, seeding, outages of a real server, and that no call waits for one twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count

import msgspec
import pytest
from redis.crc import key_slot

from serving.errors import StoreUnavailable
from serving.gateway.admission.counters.counter import Draw, Kind
from serving.gateway.admission.counters.redis import CONNECTIONS, RedisTally, key
from serving.gateway.admission.counters.seeding import RETRY_US, Seeds, nothing
from serving.gateway.admission.counters.shared import PROBE_S, SharedCounters
from tests.gateway import valkey
from tests.gateway.admission.counters.conftest import Ground
from tests.gateway.admission.counters.histories import DAY_US, MINUTE_US, RENEWAL_US, START_US, Clock
from tests.gateway.admission.counters.outages import Cut, Outage
from tests.gateway.valkey import PASSWORD, Valkey

RATE = Draw("t/tokens", Kind.RATE, 100, 10, period_us=MINUTE_US)
WINDOW = Draw("t/day", Kind.WINDOW, 100, 10, ends_at_us=START_US + DAY_US)
OPEN = Draw("t/open", Kind.OPEN, 5, 1)
PEEK = Draw("t/none", Kind.OPEN, 0, 1)


@asynccontextmanager
async def gateway(
    server: Valkey,
    clock: Clock,
    seeds: Seeds = nothing,
    outage: Outage | None = None,
    alone_max_s: float | None = None,
    timeout_s: float = 0.5,
    probe_s: float = PROBE_S,
) -> AsyncIterator[SharedCounters]:
    tally = RedisTally(server.url_file(), is_cluster=server.is_cluster, timeout_s=10, clock_us=clock)
    counters = SharedCounters(
        Cut(tally, outage or Outage()),
        seeds=seeds,
        gateways=lambda: 2,
        timeout_s=timeout_s,
        alone_max_s=alone_max_s,
        probe_s=probe_s,
        clock_us=clock,
    )
    try:
        yield counters
    finally:
        await counters.close()


async def remaining(counters: SharedCounters, *draws: Draw) -> list[int]:
    """What is left of one tenant's counters; nothing is taken."""
    peek = msgspec.structs.replace(PEEK, name=f"{draws[0].name.partition('/')[0]}/none")
    verdict = await counters.reserve("peek", [*draws, peek])
    return [level.remaining for level in verdict.levels[:-1]]


async def test_what_a_dead_gateway_held_comes_back(alone: Valkey) -> None:
    """After LEASE_S; what a living one holds stays for as long as it holds it."""
    alone.empty()
    clock = Clock()
    async with gateway(alone, clock) as dies, gateway(alone, clock) as lives:
        await dies.reserve("a", [WINDOW, OPEN])
        await lives.reserve("b", [WINDOW, OPEN])
        assert await remaining(lives, WINDOW, OPEN) == [80, 3]
        for _ in range(4):
            clock.now_us += RENEWAL_US
            await lives.renew()
        assert await remaining(lives, WINDOW, OPEN) == [90, 4]
        lives.settle("b", [WINDOW, OPEN], [3, 1])
        await lives.flush()
        assert await remaining(lives, WINDOW, OPEN) == [97, 5]


async def test_a_redis_that_was_emptied_learns_what_is_true(alone: Valkey) -> None:
    """Windows begin where the ledger is, and calls that are open are said anew."""
    alone.empty()
    clock = Clock()

    async def seeds(names: Sequence[str]) -> Sequence[int]:
        return [40] * len(names)

    async with gateway(alone, clock, seeds) as counters:
        await counters.reserve("a", [WINDOW, OPEN])
        alone.empty()
        assert await remaining(counters, WINDOW) == [60]
        await counters.renew()
        assert await remaining(counters, WINDOW, OPEN) == [50, 4]
        counters.settle("a", [WINDOW, OPEN], [5, 1])
        await counters.flush()
        assert await remaining(counters, WINDOW, OPEN) == [55, 5]


async def test_gateways_that_read_the_ledger_at_once_agree(alone: Valkey) -> None:
    """The first to write it decides, and nothing that was taken since is lost."""
    alone.empty()
    clock = Clock()

    async def seeds(names: Sequence[str]) -> Sequence[int]:
        await asyncio.sleep(0.01)
        return [40] * len(names)

    async with gateway(alone, clock, seeds) as one, gateway(alone, clock, seeds) as other:
        verdicts = await asyncio.gather(*((one, other)[it % 2].reserve(str(it), [WINDOW]) for it in range(8)))
        assert sum(verdict.refused is None for verdict in verdicts) == 6


async def test_a_doubtful_window_is_read_before_it_decides(ground: Ground) -> None:
    """Once, in each place where gateways count together: more than was counted is taken over, less is not."""
    clock, said, read = Clock(), [0], list[str]()

    async def seeds(names: Sequence[str]) -> Sequence[int]:
        read.extend(names)
        return said * len(names)

    counters = SharedCounters(ground.tally(clock), seeds=seeds, gateways=lambda: 2, timeout_s=10, clock_us=clock)
    assert await remaining(counters, WINDOW) == [100]
    for said[0], before in ((70, 100), (20, 30)):
        assert await remaining(counters, WINDOW) == [before]
        counters.doubt([WINDOW.name])
        assert await remaining(counters, WINDOW) == [30]
    assert await remaining(counters, WINDOW) == [30] and read == [WINDOW.name] * 3
    await counters.close()


async def test_a_window_that_could_not_be_read_is_read_later(alone: Valkey) -> None:
    """No call is refused for it; and it has counted what the ledger says then, at least."""
    alone.empty()
    clock = Clock()
    is_away = True

    async def seeds(names: Sequence[str]) -> Sequence[int]:
        if is_away:
            raise StoreUnavailable("away")
        return [90] * len(names)

    async with gateway(alone, clock, seeds) as counters:
        assert (await counters.reserve("a", [WINDOW])).refused is None
        is_away = False
        clock.now_us += RETRY_US
        await counters.renew()
        assert await remaining(counters, WINDOW) == [0]


async def test_a_server_that_hangs_is_waited_for_once() -> None:
    """A killed or hanging Valkey refuses no call; one line says so, and one that it is over, without its address."""
    clock = Clock()
    with valkey.running() as server:
        async with gateway(server, clock) as counters:
            assert (await counters.reserve("a", [RATE, WINDOW, OPEN])).refused is None
            server.hang()
            verdicts = await asyncio.gather(*(counters.reserve(f"b{it}", [RATE, OPEN]) for it in range(2)))
            assert [it.refused for it in verdicts] == [
                None,
                1,
            ]  # one call is open already, and 2 is this gateway's part
            assert counters.is_alone and counters.outages == 1
            for it in range(100):
                await counters.reserve(f"c{it}", [RATE])
            assert counters.decisions_alone == 102
            server.wake()
            await counters.come_back()
            assert not counters.is_alone
            server.kill()
            assert (await counters.reserve("d", [WINDOW])).refused is None and counters.outages == 2
            counters.settle("a", [RATE, WINDOW, OPEN], [1, 1, 1])
            server.start()
            await counters.come_back()
            assert not counters.is_alone


async def test_logs_say_when_an_outage_begins_and_ends(alone: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    """A line each, however many calls there are."""
    alone.empty()
    outage = Outage()
    async with gateway(alone, Clock(), outage=outage) as counters:
        outage.is_on = True
        for it in range(10):
            await counters.reserve(str(it), [RATE])
            await counters.come_back()
        outage.is_on = False
        await counters.come_back()
    began, over = (record.getMessage() for record in caplog.records)
    assert began == "limits cannot be counted together: taken away. This gateway counts 1/2 of each"
    assert over == "limits are counted together again, after 0 s"
    assert PASSWORD not in caplog.text and str(alone.port) not in caplog.text
    assert counters.decisions_alone == 10


async def test_what_waits_for_a_tally_that_takes_no_changes_is_bounded(alone: Valkey) -> None:
    """However often a gateway tries to come back to one that answers and takes nothing, its open calls are said once or twice."""
    alone.empty()
    outage = Outage()
    async with gateway(alone, Clock(), outage=outage) as counters:
        outage.is_on = outage.is_full = True
        for it in range(5):
            await counters.reserve(str(it), [RATE, WINDOW])
        outage.is_on = False
        for _ in range(20):
            await counters.come_back()
            assert counters.is_alone
        outage.is_full = False
        await counters.come_back()
        assert not counters.is_alone and outage.changes < 20


async def test_an_outage_may_last_as_long_as_is_set(alone: Valkey) -> None:
    """After that calls with limits are refused with 503: what they cost could not be bounded any more."""
    alone.empty()
    outage, clock = Outage(), Clock()
    async with gateway(alone, clock, outage=outage, alone_max_s=60) as counters:
        outage.is_on = True
        clock.now_us += 60_000_000
        assert (await counters.reserve("a", [RATE])).refused is None
        clock.now_us += 60_000_001
        with pytest.raises(StoreUnavailable):
            await counters.reserve("b", [RATE])
        assert (await counters.reserve("c", [])).refused is None
        outage.is_on = False
        await counters.come_back()
        assert (await counters.reserve("d", [RATE])).refused is None


async def test_a_client_that_leaves_while_it_is_decided_holds_nothing(alone: Valkey) -> None:
    """Whether its reservation was made or not, it is given up."""
    alone.empty()
    clock = Clock()
    async with gateway(alone, clock) as counters:
        await remaining(counters, WINDOW, OPEN)
        for delay_s in (0.0, 0.0001, 0.0003, 0.001):
            call = asyncio.create_task(counters.reserve(f"{delay_s}", [WINDOW, OPEN]))
            await asyncio.sleep(delay_s)
            if call.cancel():
                with suppress(asyncio.CancelledError):
                    await call
            else:
                counters.settle(f"{delay_s}", [WINDOW, OPEN], [0, 1])
            await counters.flush()
        await asyncio.sleep(0.05)
        await counters.flush()
        assert await remaining(counters, WINDOW, OPEN) == [100, 5]


async def test_the_task_does_all_this_by_itself(alone: Valkey) -> None:
    """It writes what calls leave it, comes back from outages, and is not woken while nothing is open."""
    alone.empty()
    outage, clock = Outage(), Clock()
    async with gateway(alone, clock, outage=outage, probe_s=0.01) as counters, gateway(alone, clock) as other:
        task = asyncio.create_task(counters.run())
        await counters.reserve("a", [WINDOW, OPEN])
        counters.settle("a", [WINDOW, OPEN], [1, 1])
        await until(other, [99, 5])
        outage.is_on = True
        await counters.reserve("b", [WINDOW, OPEN])
        counters.settle("b", [WINDOW, OPEN], [2, 1])
        outage.is_on = False
        await until(other, [97, 5])
        assert not task.done()
        task.cancel()


async def until(counters: SharedCounters, levels: list[int]) -> None:
    for _ in range(3000):
        if await remaining(counters, WINDOW, OPEN) == levels:
            return
        await asyncio.sleep(0.01)
    raise AssertionError


async def test_a_cluster_goes_on_with_its_slots_elsewhere_and_without_a_node() -> None:
    """Counters are found where their slot has gone. With a node lost each gateway counts its share, and once the node is back,
    with nothing in it, more calls than there are connections are accounted for.
    """
    with valkey.running_cluster(3) as nodes:
        clock = Clock()
        of_nodes = [_window_in(node.slots) for node in nodes if node.slots is not None]
        async with gateway(nodes[0], clock, timeout_s=10) as counters:
            assert await remaining(counters, of_nodes[1]) == [100]
            await counters.reserve("a", [of_nodes[1]])
            _move(_slot(of_nodes[1]), nodes)
            assert await remaining(counters, of_nodes[1]) == [90]
            nodes[2].kill()
            rates = [msgspec.structs.replace(RATE, name=f"{of_nodes[2].name}/{it}") for it in range(5 * CONNECTIONS)]
            for draw in rates:
                verdict = await counters.reserve(draw.name, [draw])
                assert verdict.refused is None
                counters.settle(draw.name, [draw], [7])
            assert counters.is_alone and counters.outages == 1
            await counters.come_back()
            assert counters.is_alone
            nodes[2].start()
            while counters.is_alone:
                await counters.come_back()
            await counters.flush()
            assert [*await remaining(counters, rates[0]), *await remaining(counters, of_nodes[1])] == [93, 90]
            assert counters.outages == 1


def _window_in(slots: range) -> Draw:
    names = (f"t{number}/day" for number in count())
    return msgspec.structs.replace(WINDOW, name=next(name for name in names if key_slot(key(name).encode()) in slots))


def _slot(draw: Draw) -> int:
    return key_slot(key(draw.name).encode())


def _move(slot: int, nodes: list[Valkey]) -> None:
    """From the second node to the first, with what is in it."""
    with nodes[0].client() as there, nodes[1].client() as here:
        (id_there, id_here) = (str(it.execute_command("CLUSTER", "MYID"), "ascii") for it in (there, here))
        there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", id_here)
        here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", id_there)
        keys = here.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
        here.execute_command("MIGRATE", "127.0.0.1", nodes[0].port, "", 0, 5000, "AUTH", PASSWORD, "KEYS", *keys)
        for client in (there, here):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", id_there)
