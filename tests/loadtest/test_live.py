"""Locust as it runs: against a real gateway before a scripted engine, whose own counts must be Locust's."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

from loadtest import report
from loadtest.figures import Figures, LocustEntry
from tests.gateway.world import running_gateway
from tests.loadtest.running import Talker, has_tool_answer, loadtest, processes
from tests.scripted_engine import (
    DONE,
    MODEL,
    Ending,
    Script,
    ScriptedEngine,
    chat_stream,
    error_body,
)

#: A few seconds of every user, small enough for the gateway of these tests.
EVERYBODY = (
    "--model", MODEL, "--embedding-model", MODEL, "--mix", "chat=3,agent=1,document=1,embedding=2",
    "--rate", "12", "--duration-s", "3", "--drain-s", "15", "--token-scale", "0.05", "--ttft-s", "5", "--tpot-s", "5",
)  # fmt: skip
ROUTES = {
    "chat": "/v1/chat/completions",
    "agent": "/v1/chat/completions",
    "document": "/v1/chat/completions",
    "embedding": "/v1/embeddings",
}


def entries(figures: Figures, method: str) -> dict[str, LocustEntry]:
    return {entry.name: entry for entry in figures.locust if entry.method == method}


async def test_locust_counts_what_the_engine_counts(tmp_path: Path) -> None:
    """Requests by route, answers, pieces and tokens: alone and from two workers, nothing is lost or counted twice."""
    alone, shared = await asyncio.gather(counted(tmp_path, "alone"), counted(tmp_path, "two", "--workers", "2"))
    # Who sends makes no difference to what is sent.
    assert alone.totals.sessions_planned == shared.totals.sessions_planned
    assert alone.totals.verdicts == shared.totals.verdicts
    assert (alone.about.workers, shared.about.workers) == (1, 2)


async def counted(folder: Path, name: str, *options: str) -> Figures:
    """A run's figures, each of them held against what engine and ledger say of it."""
    talker = Talker()
    async with (
        ScriptedEngine(improvise=talker.answer) as engine,
        running_gateway(folder / f"{name}-gateway", (engine.url,)) as world,
    ):
        done = await loadtest("--url", world.url, *EVERYBODY, *options, key=world.key, folder=folder / name)
        rows = world.rows()
    figures = done.figures
    posts = entries(figures, "POST")
    by_route: Counter[str] = Counter()
    for user, entry in posts.items():
        by_route[ROUTES[user]] += entry.requests
    assert by_route == Counter(call.path for call in engine.received)
    assert sum(by_route.values()) == figures.totals.requests == len(rows)
    assert set(posts) == set(ROUTES) and figures.totals.failed == figures.totals.sessions_lost == 0, done.said
    assert figures.totals.output_tokens == talker.output_tokens
    streams = by_route["/v1/chat/completions"]
    assert sum(entry.requests for entry in entries(figures, "TTFT").values()) == streams
    assert sum(entry.requests for entry in entries(figures, "ITL").values()) == talker.output_tokens - streams
    assert any(has_tool_answer(call.body) for call in engine.received), "no agent came back with what its tool said"
    return figures


async def test_sessions_begin_whatever_became_of_others(tmp_path: Path) -> None:
    """Nobody is answered before everybody has asked: a load that waits for answers would never get there."""
    everybody_asked, asked = asyncio.Event(), 0

    def answer(path: str, body: dict[str, object]) -> Script:
        nonlocal asked
        asked += 1
        if asked == 20:
            everybody_asked.set()
        return Script(chat_stream(["Hi", "!"]), gate=everybody_asked)

    async with ScriptedEngine(improvise=answer) as engine:
        seen = await loadtest(
            "--url", engine.url, "--model", MODEL, "--rate", "10", "--duration-s", "4", "--drain-s", "20",
            key="any", folder=tmp_path,
        )  # fmt: skip
    assert seen.figures.totals.requests == asked >= 20
    assert seen.figures.totals.failed == 0


#: A script, and the failure that its user sees.
FAILURES: dict[str, tuple[Script, str]] = {
    "no end": (Script(chat_stream(["Hi"])[:-1]), "cut: a stream without [DONE]"),
    "cut connection": (Script(chat_stream(["Hi"])[:2], ending=Ending.DIE), "cut: an answer cut short"),
    "error event": (
        Script([b'data: {"error": {"message": "lost", "type": "server_error", "code": "engine_failed"}}\n\n', DONE]),
        "broken: engine_failed in a stream",
    ),
    "no events": (Script([b"<html>Bad gateway</html>\n"]), "malformed: a line that is no server-sent event"),
    "half JSON": (Script([b'data: {"choices": [\n\n', DONE]), "malformed: an event that is no chunk"),
    "refused": (
        Script(
            [b'{"error": {"message": "later", "type": "server_error", "code": "overloaded"}}'],
            status=503,
            content_type="application/json",
        ),
        "refused: 503 overloaded",
    ),
    "refused in another shape": (
        Script([error_body(500, "no")], status=500, content_type="application/json"),
        "malformed: 500 whose body is no OpenAI error",
    ),
    "no headers": (Script(dies_first=True), "unreachable: "),
    "no stream": (Script([b"{}"], content_type="application/json"), "malformed: a stream that is no text/event-stream"),
}


async def test_every_failure_is_counted_by_its_name(tmp_path: Path) -> None:
    """Errors inside a stream that began with 200 are failures like any other, in our figures, Locust's and the page."""
    async with ScriptedEngine(improvise=lambda path, body: Script(chat_stream(["Hi", "!"]))) as engine:
        engine.say(*(script for script, _ in FAILURES.values()))
        done = await loadtest(
            "--url", engine.url, "--model", MODEL, "--rate", "20", "--duration-s", "2", key="any", folder=tmp_path
        )
    figures = done.figures
    found = {f"{it.kind}: {it.said}": it.count for it in figures.failures}
    for _, expected in FAILURES.values():
        assert [count for said, count in found.items() if said.startswith(expected)] == [1], found
    assert figures.totals.failed == len(FAILURES) == sum(found.values())
    assert entries(figures, "POST")["chat"].failures == len(FAILURES)
    page = (tmp_path / report.HTML).read_text()
    assert all(said in page and said in done.said for said in (it.said for it in figures.failures))
    assert f"failed of {figures.totals.requests} requests" in page


async def test_what_runs_at_the_end_is_unfinished(tmp_path: Path) -> None:
    """Answers that the run did not wait for are failures, not left out."""
    async with ScriptedEngine(improvise=lambda path, body: Script(is_mute=True)) as engine:
        done = await loadtest(
            "--url", engine.url, "--model", MODEL, "--rate", "10", "--duration-s", "1", "--drain-s", "1",
            key="any", folder=tmp_path,
        )  # fmt: skip
    assert [it.kind for it in done.figures.failures] == ["unfinished"]
    assert done.figures.totals.failed == done.figures.totals.requests == len(engine.received) > 0
    assert done.figures.totals.goodput_per_s == 0


async def test_gaps_are_those_of_the_engine(tmp_path: Path) -> None:
    """An even stream is seen as even under gevent: were reading buffered, most gaps would be nothing and a few large."""
    talker = Talker(pace_s=0.05)
    async with ScriptedEngine(improvise=talker.answer) as engine:
        done = await loadtest(
            "--url", engine.url, "--model", MODEL, "--rate", "2", "--duration-s", "3", "--token-scale", "0.2",
            key="any", folder=tmp_path,
        )  # fmt: skip
    gaps, mean = done.figures.latencies["all"].itl_s, done.figures.latencies["all"].tpot_s
    assert gaps is not None and mean is not None and gaps.count > 50
    assert gaps.p50 > mean.p50 / 2


async def test_replicas_are_seen_over_the_run(tmp_path: Path) -> None:
    """The timeline has what the gateway's own metrics say of its replicas."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path / "gateway", (engine.url,)) as world:
        done = await loadtest(
            "--url", world.url, "--model", MODEL, "--rate", "5", "--duration-s", "1", key=world.key, folder=tmp_path
        )
    assert [look.replicas for look in done.figures.sightings][:1] == [{MODEL: {"ready": 1.0}}]


async def test_ctrl_c_leaves_a_report_of_what_was(tmp_path: Path) -> None:
    """What was due until then is in it, and it says that it was cut short."""
    asked = 0

    def answer(path: str, body: dict[str, object]) -> Script:
        nonlocal asked
        asked += 1
        if asked == 10:
            (run,) = processes("run")
            run.send_signal(signal.SIGINT)
        return Script(chat_stream(["Hi", "!"]))

    async with ScriptedEngine(improvise=answer) as engine:
        done = await loadtest(
            "--url", engine.url, "--model", MODEL, "--rate", "10", "--duration-s", "60", key="any", folder=tmp_path
        )
    assert "interrupted" in done.figures.about.notes[0] and "interrupted" in done.said
    assert 9 <= done.figures.totals.requests < 60
