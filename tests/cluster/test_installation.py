"""A whole installation on a whole cluster, from `helm install` to nothing left.

The tests are steps of one story and run in this order on one release: a Ray cluster takes minutes to come up on CPUs, and most
steps need the state that the one before has made. Cell b is paused until the node of cell a is drained. After a failure
the rest is skipped.
"""

from __future__ import annotations

import pytest

from tests.cluster import leftovers, loadjob, values
from tests.cluster.cluster import drainable_node
from tests.cluster.commands import CommandFailed, Object
from tests.cluster.installation import FULLNAME, LOOK_INTERVAL_S, RELEASE, TENANT, Installation
from tests.cluster.load import Chats, Load, Stream, tokens_of
from tests.cluster.values import CELLS, MODEL, REVISION
from tests.waiting import until

pytestmark = pytest.mark.cluster

ONE_CELL = values.step(paused=frozenset({"b"}))
#: Seconds in which a row that was settled reaches the store.
LEDGER_S = 60
#: Seconds a long stream takes on an idle engine. Beside load on two cores it takes several times as long, and the gateway
#: ends it after `request_total_s`, 590.
STREAM_S = 60


def test_install(installation: Installation) -> None:
    """The CPU demo comes up from nothing but the chart: a gateway answers, then an engine."""
    installation.apply(ONE_CELL)

    installation.gateway_ready()
    assert len(installation.until_engines("a", 1)) == 1
    assert installation.pods("b") == []


def test_helm_test(installation: Installation) -> None:
    """The chart's own tests pass: a refused key, a chat, a stream, metrics."""
    installation.test()


def test_tenant_key_chat_stream_and_ledger(installation: Installation) -> None:
    """A tenant made in the gateway's pod calls with its key, in one piece and in pieces, and each call is in the ledger."""
    installation.serving("tenants", "create", TENANT)
    installation.key = installation.serving("keys", "create", TENANT, "--quiet").strip()

    with installation.client() as client:
        chats = Chats(client, MODEL)
        assert "Paris" in chats.whole(32)
        assert "Paris" in chats.stream(32)

    rows = until(lambda: len(found := installation.ledger()) == 2 and found, LEDGER_S, LOOK_INTERVAL_S)
    assert rows and all(it["status"] == 200 and it["completion_tokens"] > 0 for it in rows)


def test_load_from_inside_the_cluster(installation: Installation) -> None:
    """The load test's Jobs, a master and two workers, reach the gateway by its Service, and every answer comes whole."""
    there = (f"--url=http://{FULLNAME}", f"--metrics-url=http://{FULLNAME}-metrics:9090/metrics", f"--model={MODEL}")
    objects = loadjob.manifest(installation.parameters, *there)

    with loadjob.applied(installation.kubectl, objects, installation.key):
        figures = loadjob.finished(installation.kubectl, installation.parameters)

    assert figures.about.workers == loadjob.WORKERS
    assert figures.totals.requests >= figures.totals.sessions_planned > 0
    assert (figures.failures, figures.totals.sessions_lost) == ((), 0)
    assert figures.sightings and all(it.replicas[MODEL].get("ready") == 1.0 for it in figures.sightings)


def test_scaling_up_leaves_the_first_engine_alone(installation: Installation) -> None:
    """One engine becomes two by a change of values alone, and the first goes on under its id; then one of them leaves."""
    (first,) = installation.engines("a")

    installation.apply(values.step(paused=frozenset({"b"}), engines=2))
    both = installation.until_engines("a", 2)
    assert first in both

    installation.apply(ONE_CELL)
    assert installation.until_engines("a", 1).keys() < both.keys()


def test_draining_a_node_cuts_no_stream(installation: Installation) -> None:
    """An engine whose pod must leave finishes its stream first, and calls meanwhile are answered by the other cell."""
    installation.apply(values.step())
    (old,) = installation.engines("a")
    installation.until_engines("b", 1)
    leaving, staying = installation.engine_place("a"), installation.engine_place("b")

    with installation.client() as client:
        chats = Chats(client, MODEL)
        # The gateway gives each to the engine with less to do, so that one runs in either cell.
        length = installation.parameters.stream_tokens or tokens_of(STREAM_S, chats)
        streams = [Stream(chats, length) for _ in CELLS]
        until(lambda: all(_is_busy(installation, cell) for cell in CELLS), 120, LOOK_INTERVAL_S)
        with installation.leaving(leaving, drainable_node(leaving, [staying], _nodes(installation))):
            until(lambda: installation.is_leaving(leaving.pod), 60, LOOK_INTERVAL_S)
            assert all(it.is_running for it in streams), (
                "They ended too soon: CLUSTER_TEST_STREAM_TOKENS makes them longer."
            )
            with Load(chats) as load:
                texts = [it.text(installation.parameters.leave_timeout_s) for it in streams]
                installation.until_engines("a", 1, but=frozenset({old}))

    assert all(texts)
    assert load.answered > 0
    assert [str(it) for it in load.failures] == []


def test_upgrade_by_cells_fails_no_call(installation: Installation) -> None:
    """Each cell in turn is paused, emptied and resumed with new pods; the other serves alone, untouched, and no call fails.

    Long streams that run in a cell when it is paused end whole too.
    """
    tag = installation.parameters.upgrade_tag
    before = {cell: _identities(installation, cell) for cell in CELLS}
    upgraded: frozenset[str] = frozenset()

    with installation.client() as client:
        chats = Chats(client, MODEL)
        length = installation.parameters.stream_tokens or tokens_of(STREAM_S, chats)
        with Load(chats) as load:
            for cell in CELLS:
                streams = [Stream(chats, length) for _ in CELLS]
                _until_running(streams)
                untouched = {it: _identities(installation, it) for it in CELLS if it != cell}
                installation.apply(values.step(paused=frozenset({cell}), upgraded=upgraded, tag=tag))
                installation.until_emptied(cell)
                assert all(it.text(installation.parameters.leave_timeout_s) for it in streams)
                upgraded |= {cell}
                installation.apply(values.step(upgraded=upgraded, tag=tag))
                installation.until_engines(cell, 1)
                assert {it: _identities(installation, it) for it in untouched} == untouched
                assert all(_is_upgraded(pod, tag) for pod in installation.pods(cell, "engine"))

    assert all(before[cell].isdisjoint(_identities(installation, cell)) for cell in CELLS)
    assert load.answered > 0
    assert [str(it) for it in load.failures] == []


def test_rollback_keeps_keys_and_ledger(installation: Installation) -> None:
    """`helm rollback` gives the gateways of the revision before; keys still open, and no bill is lost."""
    tag = installation.parameters.upgrade_tag
    revision, known = installation.revision(), len(installation.ledger())
    step = values.step(upgraded=frozenset(CELLS), tag=tag)
    installation.apply(step | {"gateway": {"podAnnotations": {"cluster-test/revision": "3"}}})
    installation.gateway_ready()
    assert _gateway_annotations(installation).get("cluster-test/revision") == "3"

    installation.rollback(revision)
    installation.gateway_ready()

    assert "cluster-test/revision" not in _gateway_annotations(installation)
    for cell in CELLS:
        installation.until_engines(cell, 1)
    with installation.client() as client:
        assert Chats(client, MODEL).whole(8)
    until(lambda: len(installation.ledger()) > known, LEDGER_S, LOOK_INTERVAL_S)


def test_uninstall_leaves_nothing(installation: Installation) -> None:
    """Of every kind there is, nothing of the release stays but what says so: claims that are kept, and Secrets made once."""
    installation.uninstall()

    def only_kept() -> bool:
        return all(it.is_kept for it in installation.leftovers())

    try:
        until(only_kept, installation.parameters.leave_timeout_s, LOOK_INTERVAL_S)
    except AssertionError:
        assert [str(it) for it in installation.leftovers() if not it.is_kept] == []
    outside = installation.cluster_scoped()
    found = leftovers.of_release(outside.objects, RELEASE, FULLNAME)
    assert [str(it) for it in found] == []

    kept = installation.leftovers()
    print("Kept, as the values and the notes say:", ", ".join(map(str, kept)) or "nothing")
    print("Not looked at, for want of permission:", ", ".join(outside.unseen) or "nothing")
    installation.remove(kept)
    until(lambda: not installation.leftovers(), installation.parameters.leave_timeout_s, LOOK_INTERVAL_S)


def _until_running(streams: list[Stream]) -> None:
    until(lambda: all(it.is_running for it in streams), 120, LOOK_INTERVAL_S)


def _is_busy(installation: Installation, cell: str) -> bool:
    """Whether its engine generates now."""
    return any(it.load.running_requests for it in installation.engines(cell).values())


def _identities(installation: Installation, cell: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in installation.pods(cell)}


def _is_upgraded(pod: Object, tag: str) -> bool:
    """Whether a pod is of the new template: its image's tag, or the variable that changed."""
    container = pod["spec"]["containers"][0]
    if tag:
        return bool(container["image"].endswith(f":{tag}"))
    return {"name": REVISION, "value": "2"} in container["env"]


def _nodes(installation: Installation) -> list[Object]:
    """The nodes; none where they may not be listed and closed, so that a pod is evicted instead."""
    if not (installation.kubectl.can("patch", "nodes") and installation.kubectl.can("list", "nodes")):
        return []
    try:
        return installation.kubectl.list("nodes")
    except CommandFailed:
        return []


def _gateway_annotations(installation: Installation) -> dict[str, str]:
    """Of the pod template that is rolled out."""
    (found,) = [
        it for it in installation.kubectl.list("deployments") if it["metadata"]["name"] == f"{FULLNAME}-gateway"
    ]
    annotations: dict[str, str] = found["spec"]["template"]["metadata"]["annotations"]
    return annotations
