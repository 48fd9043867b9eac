"""Polls: what directories say is taken in, logged once, and answered with the demand seen here."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import CELL_MEMORY_S, Fleet
from serving.gateway.fleet.polls import Polls
from serving.secret import PlaneSecret
from serving.wire import ListedModel, Traffic
from tests.clock import Clock
from tests.gateway.fleet.directory import Directory
from tests.gateway.fleet.reports import answer, report
from tests.gateway.world import running_gateway, until
from tests.scripted_engine import MODEL, ScriptedEngine

NONE = Traffic()


def polls(clock: Clock, demands: Demands | None = None) -> Polls:
    demands = demands or Demands(clock)
    return Polls([], Fleet([], demands, clock, clock), demands, 0.5, clock)


def test_a_directorys_warning_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    """Once each, however often it is polled; another cell's silence, or a directory just restarted, ends nothing."""
    caplog.set_level("INFO", "serving.gateway.fleet.polls")
    one = polls(Clock())
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
        one.take(heard, 0.0)
        said.append([(record.levelname, record.getMessage()) for record in caplog.records])
    begun = [("WARNING", "a warns: GPU 3 of node n is suspect.")]
    ended = [("INFO", "a no longer warns: GPU 3 of node n is suspect.")]
    assert said == [[], begun, [], [], [], [], ended, [], begun]


def test_how_many_engines_are_wanted_is_logged_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    """Once each, with the reason; and what they wait for, when they do."""
    caplog.set_level("INFO", "serving.gateway.fleet.polls")
    one = polls(Clock())
    for wanted, shortage in ((None, None), (1, None), (1, None), (2, None), (2, "waits"), (2, "waits"), (2, None)):
        listed = ListedModel("m", wanted=wanted, reason="arriving work", shortage=shortage)
        one.take(msgspec.structs.replace(answer(), models=(listed,)), 0.0)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "a wants 1 engines of m: arriving work",
        "a wants 2 engines of m: arriving work",
        "a, model m: waits",
    ]


def test_a_cell_that_has_gone_leaves_its_share_to_the_others() -> None:
    """Two cells share what arrives; when one has been silent for long the other gets all of it."""
    clock = Clock()
    demands = Demands(clock)
    one = polls(clock, demands)
    told = demands.read()
    for cell in ("a", "b"):
        one.take(msgspec.structs.replace(answer(cell=cell), models=(ListedModel("m"),)), clock.now)
    demands.arrive("m", 100, 0.0)
    assert one._traffic(told, demands.read())["m"].arrived_prompt_tokens == 50
    clock.advance(CELL_MEMORY_S + 1)
    one.take(msgspec.structs.replace(answer(cell="a"), models=(ListedModel("m"),)), clock.now)
    assert one._traffic(told, demands.read())["m"].arrived_prompt_tokens == 100


async def test_an_adapter_is_a_model_to_clients(tmp_path: Path) -> None:
    """Its name, or an alias of it, reaches the engine as the model, and is what the ledger, the list and metrics say."""
    (tmp_path / "secret").write_text("s3cret\n")
    async with Directory() as directory, ScriptedEngine() as bare, ScriptedEngine() as offering:
        one, two = report("r1", model=MODEL, url=bare.url), report("r2", model=MODEL, url=offering.url, adapters=("x",))
        directory.says = answer(one, two)
        secret = PlaneSecret(tmp_path / "secret")
        async with running_gateway(
            tmp_path / "home", directories=(directory.url,), secret=secret, aliases={"tuned": "x"}
        ) as world:
            statuses = [(await world.chat(model=name)).status for name in ("x", "tuned", "x", "y")]
            cards = json.loads((await world.ask("GET", "/v1/models")).body)["data"]
            shown = (await world.ask("GET", "/v1/models/x")).json
            health = (await world.ask("GET", "/health/models")).json
            metrics = (await world.ask("GET", "/metrics")).body.decode()
            models = [row["model"] for row in world.rows()]
            directory.says = answer(one, report("r2", model=MODEL, url=offering.url))
            for _ in range(2):  # a poll that comes again has taken in the answer before
                directory.authorizations = set()
                await until(lambda: directory.authorizations)
            gone = await world.chat(model="tuned")
    assert statuses == [200, 200, 200, 404] and models == ["x", "x", "x", ""] and bare.received == []
    assert {received.body["model"] for received in offering.received} == {"x"}
    assert {card["id"]: card["parent"] for card in cards} == {MODEL: None, "x": MODEL, "tuned": MODEL}
    assert shown["parent"] == MODEL and health == {"models": {MODEL: "ready"}}
    assert 'serving_gateway_tokens_total{kind="completion",model="x"}' in metrics
    assert (gone.status, gone.error["code"]) == (404, "model_not_found")


async def test_a_gateway_without_calls_lets_the_directory_wait_for_news(tmp_path: Path) -> None:
    """It says what it knows already; with calls, and after a silence, it wants the answer at once."""
    async with Directory() as directory, ScriptedEngine() as engine:
        directory.says = msgspec.structs.replace(answer(report("r1", model=MODEL, url=engine.url)), news="1")
        async with running_gateway(tmp_path, directories=(directory.url,)) as world:
            await until(lambda: directory.reports[-1].known == "1")
            known = [it.known for it in directory.reports]
            assert known[0] == ""  # it knows nothing yet
            seen = len(directory.reports)
            await world.chat()
            await until(lambda: any(it.traffic.get(MODEL, NONE) != NONE for it in directory.reports[seen:]))
            (told, *_) = [it for it in directory.reports[seen:] if it.traffic.get(MODEL, NONE) != NONE]
            assert told.known == ""
            says, directory.says = directory.says, None
            await until(
                lambda: directory.reports[-1].known == "" and directory.reports[-1].traffic.get(MODEL, NONE) == NONE
            )
            directory.says = msgspec.structs.replace(says, news="2")
            await until(lambda: directory.reports[-1].known == "2")


async def test_a_call_without_a_limit_reaches_the_engine_with_its_models_default(tmp_path: Path) -> None:
    """As its cell lists it, for its adapters and aliases too; the client's own limit passes as it is; the list shows it. Text completions have 16 tokens, as OpenAI's."""
    async with Directory() as directory, ScriptedEngine() as engine:
        listed = ListedModel(MODEL, context_tokens=4096, default_output_tokens=64, adapters=("x",))
        ready = report("r1", model=MODEL, url=engine.url, adapters=("x",))
        directory.says = msgspec.structs.replace(answer(ready), models=(listed,))
        async with running_gateway(tmp_path, directories=(directory.url,), aliases={"tuned": "x"}) as world:
            statuses = [(await world.chat(**fields)).status for fields in ({}, {"model": "tuned"}, {"max_tokens": 5})]
            responses = await world.post("/v1/responses", {"model": MODEL, "input": "Hello"})
            completions = await world.post("/v1/completions", {"model": MODEL, "prompt": "Hello"})
            cards = json.loads((await world.ask("GET", "/v1/models")).body)["data"]
    assert [*statuses, responses.status, completions.status] == [200] * 5
    limits = [
        {name: body[name] for name in body if name.startswith("max_")} for body in (it.body for it in engine.received)
    ]
    default = {"max_completion_tokens": 64}
    assert limits == [default, default, {"max_tokens": 5}, {"max_output_tokens": 64}, {"max_tokens": 16}]
    assert {card["id"]: card["default_output_tokens"] for card in cards} == {MODEL: 64, "x": 64, "tuned": 64}


async def test_a_directory_restarted_empty_or_dead_or_mad_fails_no_request(tmp_path: Path) -> None:
    """The gateway shows the plane secret, learns its replicas, and keeps them through the directory's troubles."""
    secret_file = tmp_path / "secret"
    secret_file.write_text("s3cret\n")
    async with Directory() as directory, ScriptedEngine() as engine:
        directory.says = answer(report("r1", model=MODEL, url=engine.url))
        secret = PlaneSecret(secret_file)
        async with running_gateway(tmp_path / "home", directories=(directory.url,), secret=secret) as world:
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
