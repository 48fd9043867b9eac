"""The fleet and the ranking: silence removes nobody, and nobody is counted twice."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from serving.config import GatewaySettings
from serving.errors import GatewayFull, NoReplicaReady
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import CELL_MEMORY_S, Fleet, Known, is_withdrawn, merge, ready
from serving.gateway.fleet.router import Candidate, rank
from serving.secret import PlaneSecret
from serving.wire import DirectoryAnswer, EngineLoad, Listed, ListedModel, ReplicaReport, ReplicaState
from tests.clock import Clock
from tests.gateway.world import running_gateway, until
from tests.scripted_engine import MODEL, ScriptedEngine


def report(
    replica_id: str,
    state: ReplicaState = ReplicaState.READY,
    *,
    model: str = "m",
    url: str = "",
    running: int = 0,
    adapters: tuple[str, ...] = (),
) -> ReplicaReport:
    url = url or f"http://{replica_id}"
    return ReplicaReport(replica_id, model, url, state, load=EngineLoad(running_requests=running), adapters=adapters)


def answer(
    *reports: ReplicaReport, cell: str = "a", is_complete: bool = True, heard_ago_s: float = 0.1
) -> DirectoryAnswer:
    return DirectoryAnswer(cell, "1", is_complete, tuple(Listed(said, heard_ago_s) for said in reports))


def ids(known: dict[str, Known], lost_at: dict[str, float] | None = None, model: str = "m") -> set[str]:
    return {replica.report.replica_id for replica in ready(known, lost_at or {}, model)}


def merged(*answers: DirectoryAnswer) -> dict[str, Known]:
    known: dict[str, Known] = {}
    for at, said in enumerate(answers, 100):
        known = merge(known, said, float(at), {})
    return known


def test_a_complete_answer_removes_who_is_missing() -> None:
    """A directory that has heard everyone and does not list a replica says that it is gone."""
    assert ids(merged(answer(report("1"), report("2")), answer(report("2")))) == {"2"}


def test_an_incomplete_answer_removes_nobody() -> None:
    """A directory that has just restarted empty leaves the fleet as it is, and may add to it."""
    known = merged(answer(report("1")), answer(is_complete=False), answer(report("3"), is_complete=False))
    assert ids(known) == {"1", "3"}


def test_cells_speak_only_for_themselves() -> None:
    """Two cells' replicas count together; a complete answer of one says nothing about the other's."""
    assert ids(merged(answer(report("1"), cell="a"), answer(report("2"), cell="b"))) == {"1", "2"}


def test_a_replica_listed_twice_is_one() -> None:
    """By its id in two cells, or by its address under two ids, a replica gets one place in the ranking."""
    assert ids(merged(answer(report("1"), cell="a"), answer(report("1"), cell="b"))) == {"1"}
    assert len(ids(merged(answer(report("old", url="u")), answer(report("new", url="u"), cell="b")))) == 1


@pytest.mark.parametrize("state", [state for state in ReplicaState if state is not ReplicaState.READY])
def test_only_ready_replicas_get_calls(state: ReplicaState) -> None:
    """Draining, failed, or not ready yet: known, and left alone."""
    known = merged(answer(report("1")), answer(report("1", state)))
    assert ids(known) == set() and known["1"].report.state is state


def test_an_adapter_is_asked_for_where_it_is_offered() -> None:
    """Its calls go to ready replicas that offer it, its model's to all."""
    loading = report("4", ReplicaState.LOADING, adapters=("x",))
    known = merged(answer(report("1", adapters=("x",)), report("2", adapters=("x", "y")), report("3"), loading))
    assert (ids(known), ids(known, model="x"), ids(known, model="y")) == ({"1", "2", "3"}, {"1", "2"}, {"2"})
    assert ids(known, {"2": 101.0}, "y") == set()


def test_an_adapter_is_withdrawn_when_a_ready_replica_says_so() -> None:
    """Not while another offers it, nor while none is ready: those may be restarting with it."""
    without, offering = report("1"), report("2", ReplicaState.LOADING, adapters=("x",))
    assert is_withdrawn(merged(answer(without)), "x", "m")
    assert not is_withdrawn(merged(answer(without, offering)), "x", "m")
    assert not is_withdrawn(merged(answer(report("1", ReplicaState.STARTING))), "x", "m")
    assert not is_withdrawn(merged(answer(report("1", model="another"))), "x", "m")


def test_an_older_report_does_not_undo_a_newer_one() -> None:
    """Whichever cell brings it, the report that was spoken last counts."""
    known = merged(answer(report("1", ReplicaState.DRAINING)), answer(report("1"), cell="b", heard_ago_s=30))
    assert ids(known) == set()


def test_a_refused_connection_holds_until_the_replica_speaks_again() -> None:
    """A report from before the loss, however often it is repeated, does not bring a replica back; a later one does."""
    known = merged(answer(report("1"), heard_ago_s=0.1))
    lost_at = {"1": 100.5}
    known = merge(known, answer(report("1"), heard_ago_s=5.1), 105.0, {})
    assert ids(known, lost_at) == set()
    known = merge(known, answer(report("1"), heard_ago_s=0.1), 106.0, {})
    assert ids(known, lost_at) == {"1"}


def test_the_least_committed_replica_is_first() -> None:
    """Our own requests now plus what others have there; our share of an old report is not counted again."""
    busy = Candidate("busy", "", own_requests=2, own_when_heard=2, reported_requests=5)
    ours = Candidate("ours", "", own_requests=4, own_when_heard=4, reported_requests=4)
    idle = Candidate("idle", "", own_requests=0, own_when_heard=3, reported_requests=3)
    assert [busy.committed_requests, ours.committed_requests, idle.committed_requests] == [5, 4, 0]
    assert [candidate.replica_id for candidate in rank([busy, ours, idle], 0)] == ["idle", "ours", "busy"]


def test_equals_take_turns() -> None:
    """Equally loaded replicas share the calls, whatever order they are listed in."""
    candidates = [Candidate(name, "") for name in "cab"]
    assert [rank(candidates, turn)[0].replica_id for turn in range(4)] == ["a", "b", "c", "a"]
    assert rank([], 3) == []


def fleet(clock: Clock, demands: Demands | None = None, max_waiting_requests: int = 10) -> Fleet:
    settings = GatewaySettings(max_waiting_requests=max_waiting_requests)
    return Fleet([], settings, demands or Demands(clock), clock, clock)


async def test_waiting_ends_when_a_replica_is_ready_in_order_of_arrival() -> None:
    """Who waited first is woken first, and only for its own model."""
    clock, woken = Clock(), []
    one = fleet(clock)

    async def wait(name: str, model: str) -> None:
        await one.wait_until_ready(model, clock.now + 5)
        woken.append(name)

    tasks = [asyncio.create_task(wait(name, model)) for name, model in (("1", "m"), ("2", "other"), ("3", "m"))]
    await asyncio.sleep(0)
    one.hear(answer(report("1")), clock.now)
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(tasks[0], tasks[2])
    assert woken == ["1", "3"] and not tasks[1].done()
    tasks[1].cancel()


async def test_waiting_ends_at_its_deadline() -> None:
    """Nobody waits for ever: past the deadline the client is told when to come back."""
    clock = Clock()
    with pytest.raises(NoReplicaReady) as told:
        await fleet(clock).wait_until_ready("m", clock.now)
    assert told.value.retry_after_s


def test_our_share_of_a_report_is_what_we_had_when_it_was_heard() -> None:
    """Requests that begin after a report are added to it; those it already counted are not."""
    clock = Clock()
    one = fleet(clock)
    one.hear(answer(report("1")), clock.now)
    with one.committed("1"):
        clock.advance(1)
        one.hear(answer(report("1", running=3)), clock.now)
        with one.committed("1"):
            (candidate,) = one.candidates("m")
    assert candidate.committed_requests == 4


def test_a_model_without_replicas_is_remembered_for_a_while() -> None:
    """While its replicas restart a model is "not ready", not "unknown"; a model nobody ever listed is unknown."""
    clock = Clock()
    one = fleet(clock)
    one.hear(answer(report("1")), clock.now)
    one.hear(answer(), clock.now)
    assert one.may_know("m") and not one.may_know("never") and one.models() == []
    clock.advance(3601)
    assert not one.may_know("m")


async def test_who_waits_for_an_adapter_is_woken_by_a_replica_that_offers_it() -> None:
    """A ready replica of its model without it wakes nobody."""
    clock = Clock()
    one = fleet(clock)
    waiting = asyncio.create_task(one.wait_until_ready("x", clock.now + 5))
    await asyncio.sleep(0)
    one.hear(answer(report("1")), clock.now)
    await asyncio.sleep(0)
    assert not waiting.done()
    clock.advance(1)
    one.hear(answer(report("1", adapters=("x",))), clock.now)
    await waiting
    assert [it.replica_id for it in one.candidates("x")] == ["1"]


def test_an_adapter_is_unknown_as_soon_as_it_is_withdrawn() -> None:
    """Its model's replicas restarting is "not ready"; one that is ready and no longer offers it is "unknown"."""
    clock = Clock()
    one = fleet(clock)
    known = []
    for said in (answer(report("1", adapters=("x",))), answer(report("1", ReplicaState.FAILED)), answer(report("1"))):
        clock.advance(1)
        one.hear(said, clock.now)
        known.append(one.may_know("x"))
    assert known == [True, True, False] and one.may_know("m") and not one.may_know("never")
    assert [it.name for it in one.models()] == ["m"] and one.adapters() == []


def test_a_directorys_warning_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    """Once each, whoever polls how often; another cell's silence, or a directory just restarted, ends nothing."""
    caplog.set_level("INFO", "serving.gateway.fleet.fleet")
    one = fleet(Clock())
    warning = msgspec.structs.replace(answer(), warnings=("GPU 3 of node n is suspect.",))
    said: list[list[tuple[str, str]]] = []
    for heard in (
        answer(),
        warning,
        warning,
        answer(cell="b"),
        answer(is_complete=False),
        warning,
        answer(),
        answer(),
        warning,
    ):
        caplog.clear()
        one.hear(heard, 0.0)
        said.append([(record.levelname, record.getMessage()) for record in caplog.records])
    begun = [("WARNING", "a warns: GPU 3 of node n is suspect.")]
    ended = [("INFO", "a no longer warns: GPU 3 of node n is suspect.")]
    assert said == [[], begun, [], [], [], [], ended, [], begun]


class Directory:
    """A directory on a real port that says what it is told to, or nothing."""

    def __init__(self) -> None:
        self.says: DirectoryAnswer | bytes | None = None
        self.authorizations: set[str | None] = set()
        app = web.Application()
        app.router.add_post("/directory", self.answer)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> str:
        """Listen; returns its base URL."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def answer(self, request: web.Request) -> web.Response:
        self.authorizations.add(request.headers.get("Authorization"))
        if self.says is None:
            return web.Response(status=500)
        return web.Response(body=self.says if isinstance(self.says, bytes) else msgspec.json.encode(self.says))


async def test_an_adapter_is_a_model_to_clients(tmp_path: Path) -> None:
    """Its name, or an alias of it, reaches the engine as the model, and is what the ledger, the list and metrics say."""
    (tmp_path / "secret").write_text("s3cret\n")
    directory = Directory()
    base_url = await directory.start()
    async with ScriptedEngine() as bare, ScriptedEngine() as offering:
        one, two = report("r1", model=MODEL, url=bare.url), report("r2", model=MODEL, url=offering.url, adapters=("x",))
        directory.says = answer(one, two)
        secret = PlaneSecret(tmp_path / "secret")
        async with running_gateway(
            tmp_path / "home", directories=(base_url,), secret=secret, aliases={"tuned": "x"}
        ) as world:
            statuses = [(await world.chat(model=name)).status for name in ("x", "tuned", "x", "y")]
            cards = json.loads((await world.ask("GET", "/v1/models")).body)["data"]
            shown = (await world.ask("GET", "/v1/models/x")).json
            health = (await world.ask("GET", "/health/models")).json
            metrics = (await world.ask("GET", "/metrics")).body.decode()
            models = [row["model"] for row in world.rows()]
            directory.says = answer(one, report("r2", model=MODEL, url=offering.url))
            for _ in range(2):  # whoever asks again has taken the answer before in
                directory.authorizations = set()
                await until(lambda: directory.authorizations)
            gone = await world.chat(model="tuned")
        await directory.stop()
    assert statuses == [200, 200, 200, 404] and models == ["x", "x", "x", ""] and bare.received == []
    assert {received.body["model"] for received in offering.received} == {"x"}
    assert {card["id"]: card["parent"] for card in cards} == {MODEL: None, "x": MODEL, "tuned": MODEL}
    assert shown["parent"] == MODEL and health == {"models": {MODEL: "ready"}}
    assert 'serving_gateway_tokens_total{kind="completion",model="x"}' in metrics
    assert (gone.status, gone.error["code"]) == (404, "model_not_found")


async def test_a_directory_restarted_empty_or_dead_or_mad_fails_no_request(tmp_path: Path) -> None:
    """The gateway shows the plane secret, learns its replicas, and keeps them through the directory's troubles."""
    secret_file = tmp_path / "secret"
    secret_file.write_text("s3cret\n")
    directory = Directory()
    base_url = await directory.start()
    async with ScriptedEngine() as engine:
        directory.says = answer(report("r1", model=MODEL, url=engine.url))
        secret = PlaneSecret(secret_file)
        async with running_gateway(tmp_path / "home", directories=(base_url,), secret=secret) as world:
            statuses = [(await world.chat()).status]
            for trouble in (None, b"{", b'{"cell":"\xff"}', answer(is_complete=False)):
                directory.says, directory.authorizations = trouble, set()
                await until(lambda: directory.authorizations)
                statuses.append((await world.chat()).status)
            await directory.stop()
            statuses.append((await world.chat()).status)
            row = world.rows()[0]
    assert statuses == [200] * 6 and row["replica_id"] == "r1"
    assert directory.authorizations == {"Bearer s3cret"} == {engine.received[0].headers["Authorization"]}


async def test_the_waiting_room_has_a_last_place() -> None:
    """Whoever comes after a model's last place is taken is told to come back; nobody else is touched."""
    clock = Clock()
    demands = Demands(clock)
    one = fleet(clock, demands, max_waiting_requests=1)
    waits = asyncio.create_task(one.wait_until_ready("m", clock.now + 5, prompt_tokens=7))
    await asyncio.sleep(0)
    with pytest.raises(GatewayFull) as refused:
        await one.wait_until_ready("m", clock.now + 5)
    assert refused.value.retry_after_s and not waits.done() and demands.held_requests("m") == 1
    one.hear(answer(msgspec.structs.replace(report("a"), state=ReplicaState.LOADING)), clock.now)
    clock.advance(2)
    (seen,) = one.models()
    assert (seen.waiting_requests, seen.oldest_wait_s) == (1, 2.0)
    clock.advance(1)
    one.hear(answer(report("a")), clock.now)
    await waits
    assert demands.held_requests("m") == 0


def test_a_model_that_sleeps_is_known() -> None:
    """A cell lists a model without a replica: it is served, may be slow to wake, and how many are wanted is told."""
    clock = Clock()
    one = fleet(clock)
    asleep = ListedModel("m", context_tokens=4096, wanted=0, may_sleep=True)
    one.hear(msgspec.structs.replace(answer(), models=(asleep,)), clock.now)
    assert one.may_know("m") and one.lists("m") and one.may_sleep("m") and not one.may_sleep("other")
    (model,) = one.models()
    assert (model.name, model.context_tokens, model.states, model.wanted) == ("m", 4096, {}, 0)
    one.hear(answer(), clock.now)  # removed from the settings
    assert one.models() == [] and not one.may_sleep("m") and not one.may_know("m")


def test_how_many_engines_are_wanted_is_logged_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    """Once each, with the reason; and what they wait for, when they do."""
    caplog.set_level("INFO", "serving.gateway.fleet.fleet")
    one = fleet(Clock())
    for wanted, shortage in ((None, None), (1, None), (1, None), (2, None), (2, "waits"), (2, "waits"), (2, None)):
        listed = ListedModel("m", wanted=wanted, reason="arriving work", shortage=shortage)
        one.hear(msgspec.structs.replace(answer(), models=(listed,)), 0.0)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "a wants 1 engines of m: arriving work",
        "a wants 2 engines of m: arriving work",
        "a, model m: waits",
    ]


def test_an_adapter_of_a_sleeping_model_is_known_until_replicas_say_otherwise() -> None:
    """The settings' word counts while no replica runs; a replica that refused the adapter knows better."""
    clock = Clock()
    one = fleet(clock)
    asleep = ListedModel("m", adapters=("x", "broken"), wanted=0, may_sleep=True)
    one.hear(msgspec.structs.replace(answer(), models=(asleep,)), clock.now)
    assert [it.name for it in one.adapters()] == ["broken", "x"] and one.may_know("x") and one.may_sleep("x")
    assert one.base_of("x") == "m"
    clock.advance(1)
    one.hear(msgspec.structs.replace(answer(report("1", adapters=("x",))), models=(asleep,)), clock.now)
    assert [it.name for it in one.adapters()] == ["x"] and one.may_know("x") and not one.may_know("broken")


def test_a_name_may_change_its_meaning() -> None:
    """What was an adapter becomes a model of its own, and is known as that."""
    clock = Clock()
    one = fleet(clock)
    one.hear(answer(report("1", adapters=("x",))), clock.now)
    assert one.base_of("x") == "m"
    clock.advance(1)
    one.hear(answer(report("1"), report("2", model="x")), clock.now)
    assert one.base_of("x") == "x" and one.may_know("x") and one.candidates("x")


async def test_a_call_for_an_adapter_that_its_ready_base_lacks_is_no_demand() -> None:
    """More engines would lack it too."""
    clock = Clock()
    demands = Demands(clock)
    one = fleet(clock, demands)
    asleep = ListedModel("m", adapters=("x",), wanted=1)
    one.hear(msgspec.structs.replace(answer(report("1")), models=(asleep,)), clock.now)
    waits = asyncio.create_task(one.wait_until_ready("x", clock.now + 5))
    await asyncio.sleep(0)
    assert not waits.done() and demands.held_requests("m") == 0
    waits.cancel()


def test_a_cell_that_has_gone_leaves_its_share_to_the_others() -> None:
    """Two cells share what arrives; when one has been silent for long the other gets all of it."""
    clock = Clock()
    demands = Demands(clock)
    one = fleet(clock, demands)
    told = demands.read()
    for cell in ("a", "b"):
        one.hear(msgspec.structs.replace(answer(cell=cell), models=(ListedModel("m"),)), clock.now)
    demands.arrive("m", 100, 0.0)
    assert one._traffic(told, demands.read())["m"].arrived_prompt_tokens == 50
    clock.advance(CELL_MEMORY_S + 1)
    one.hear(msgspec.structs.replace(answer(cell="a"), models=(ListedModel("m"),)), clock.now)
    assert one._traffic(told, demands.read())["m"].arrived_prompt_tokens == 100
