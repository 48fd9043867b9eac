"""A directory tells what it has heard, and whether that is everything."""

import msgspec

from serving.engine.directory import COMPLETE_AFTER_S, EXPIRY_S, SILENCE_MAX_S, SILENCE_S, Listing
from serving.wire import DirectoryAnswer, EngineLoad, GatewayReport, ReplicaReport, ReplicaState
from tests.clock import Clock


def report(replica_id: str, state: ReplicaState = ReplicaState.READY) -> ReplicaReport:
    return ReplicaReport(replica_id=replica_id, model="m", url="http://127.0.0.1:1", state=state)


def test_a_young_directory_says_that_it_is_not_complete() -> None:
    """Until everyone has had time to report, a missing replica means nothing."""
    clock = Clock()
    listing = Listing("cell", "one", clock)
    assert not listing.answer().is_complete
    clock.advance(COMPLETE_AFTER_S)
    assert listing.answer().is_complete


def test_the_last_report_counts() -> None:
    """A replica is listed once, with its newest state and the age of its report."""
    clock = Clock()
    listing = Listing("cell", "one", clock)
    listing.record(report("a", ReplicaState.LOADING))
    clock.advance(1)
    listing.record(report("a"))
    clock.advance(2)
    (listed,) = listing.answer().replicas
    assert listed.report.state is ReplicaState.READY and listed.heard_ago_s == 2


def test_a_load_alone_is_no_news() -> None:
    """Gateways without calls need not learn it; a replica, a state and a reason are for all of them."""
    listing = Listing("cell", "1", Clock())
    ready = report("a")
    assert listing.record(ready) and not listing.record(ready)
    assert not listing.record(msgspec.structs.replace(ready, load=EngineLoad(running_requests=3)))
    assert listing.record(msgspec.structs.replace(ready, state=ReplicaState.DRAINING))
    assert listing.record(msgspec.structs.replace(ready, state=ReplicaState.DRAINING, reason="why"))


def test_a_silent_replica_expires() -> None:
    """A replica that died without a word disappears; one that still reports stays."""
    clock = Clock()
    listing = Listing("cell", "one", clock)
    listing.record(report("dead"))
    for _ in range(int(EXPIRY_S)):
        clock.advance(1)
        listing.record(report("alive"))
    assert [listed.report.replica_id for listed in listing.answer().replicas] == ["alive"]


def test_it_says_how_many_gateways_ask() -> None:
    """Those that have asked lately: one that has gone no longer counts."""
    clock = Clock()
    listing = Listing("cell", "one", clock)
    for gateway in ("a", "b", "a"):
        listing.record_gateway(GatewayReport(gateway))
    assert listing.answer().gateways == 2
    clock.advance(EXPIRY_S)
    listing.record_gateway(GatewayReport("b"))
    assert listing.answer().gateways == 1


def test_when_all_fall_silent_it_was_the_directory_that_was_away() -> None:
    """Then nobody is forgotten, and its answers are not complete until everyone has had time to report again."""
    clock = Clock()
    listing = Listing("cell", "one", clock)
    for _ in range(10):
        clock.advance(1)
        listing.record(report("a"))
        listing.record(report("b"))
    clock.advance(13)
    after = listing.answer()
    assert not after.is_complete and len(after.replicas) == 2 and listing.wanted() is None

    listing.record(report("a"))
    clock.advance(COMPLETE_AFTER_S - 1)
    listing.record(report("a"))
    assert not listing.answer().is_complete
    clock.advance(1)
    alone = listing.answer()
    assert alone.is_complete and [it.report.replica_id for it in alone.replicas] == ["a"]


def test_a_silence_that_lasts_is_believed() -> None:
    """A cell whose engines are all gone does not wait for them for ever."""
    clock = Clock()
    listing = Listing("cell", "one", clock)
    listing.record(report("a"))
    clock.advance(SILENCE_MAX_S)
    assert listing.answer().is_complete and listing.answer().replicas == ()


def test_those_who_go_in_order_leave_no_silence() -> None:
    """A fleet that went to sleep is no reason to doubt: its first call must find a directory that decides."""
    clock = Clock()
    listing = Listing("cell", "one", clock)
    for _ in range(10):
        clock.advance(1)
        listing.record(report("a", ReplicaState.DRAINING))
    clock.advance(SILENCE_S + 1)
    assert listing.answer().is_complete
    clock.advance(EXPIRY_S)
    assert listing.answer().replicas == () and listing.wanted() is not None


def test_the_answer_survives_the_wire_and_newer_fields() -> None:
    """A gateway reads a directory of another version: what it does not know it ignores."""
    listing = Listing("cell", "one", Clock())
    listing.record(report("a"))
    answer = listing.answer()
    document = msgspec.json.decode(msgspec.json.encode(answer))
    document["from_the_future"] = 1
    assert msgspec.json.decode(msgspec.json.encode(document), type=DirectoryAnswer) == answer


def test_an_overloaded_engine_is_no_silence() -> None:
    """The only one that lives reports late, because its engine does not say how busy it is: the directory still decides."""
    clock = Clock()
    listing = Listing("cell", "one", clock)
    listing.record(report("dead"))
    for _ in range(4):
        clock.advance(7.5)
        listing.record(report("busy"))
    assert listing.wanted() is not None
    assert [it.report.replica_id for it in listing.answer().replicas] == ["busy"]


def test_after_a_silence_that_was_believed_everyone_is_awaited_again() -> None:
    """The first who comes back does not speak for the others."""
    clock = Clock()
    listing = Listing("cell", "one", clock)
    for replica_id in ("a", "b"):
        listing.record(report(replica_id))
    clock.advance(SILENCE_MAX_S + 1)
    listing.record(report("a"))
    assert not listing.answer().is_complete
