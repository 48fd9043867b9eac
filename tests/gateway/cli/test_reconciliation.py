"""`serving ledger check`: engines and directories are asked over HTTP, a moment at rest is waited for, and the result is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from serving.config import GatewaySettings, Settings
from serving.errors import Refusal
from serving.gateway.cli import reconciliation
from serving.gateway.cli.reconciliation import APART_S, Plane, balances, figures
from serving.gateway.ledger.balance import Counted, Counts, Verdict
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import Outcome, Usage
from serving.gateway.store.store import Store
from serving.wire import DirectoryAnswer, EngineLoad, Listed, ReplicaReport, ReplicaState
from tests.clock import Clock
from tests.gateway.calls import record
from tests.gateway.places import SqlitePlace

PAGE = """\
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0"} 100.0
vllm:prompt_tokens_total{engine="1"} 10.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0"} 51.0
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 0.0
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.5e9
"""
MODELS = b'{"data": [{"id": "m"}, {"id": "adapter"}]}'


class Served:
    """Pages by path, and the requests that came."""

    def __init__(self, url: str, pages: dict[str, bytes]) -> None:
        self.url = url
        self.pages = pages
        self.asked: list[tuple[str, str | None]] = []


@contextmanager
def serving(pages: dict[str, bytes]) -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append((self.path, self.headers["Authorization"]))
            body = served.pages.get(self.path.partition("?")[0])
            self.send_response(200 if body is not None else 404)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_port}", pages)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def engine() -> Iterator[Served]:
    with serving({"/metrics": PAGE.encode(), "/v1/models": MODELS}) as served:
        yield served


def directory(*reports: ReplicaReport) -> bytes:
    listed = tuple(Listed(report, 0.0) for report in reports)
    return msgspec.json.encode(DirectoryAnswer("cell", "1", is_complete=True, replicas=listed))


def settings(home: Path, **gateway: object) -> Settings:
    return Settings(home=home, gateway=GatewaySettings(**gateway))  # type: ignore[arg-type]


def test_an_engine_without_a_directory_is_known_as_gateways_know_it(tmp_path: Path, engine: Served) -> None:
    """By its address and the model that it lists first; nothing is known of a replica's questions, as it has none."""
    assert Plane(settings(tmp_path, engines=(engine.url,))).counted() == [
        Counted(f"{engine.url}#m", "m", Counts(110, 51), requests=0, started_at=1.5e9)
    ]


def test_a_directory_names_its_replicas_and_what_they_asked(tmp_path: Path, engine: Served) -> None:
    """Those that serve, and of an engine over several nodes the first; each is shown the plane secret."""
    (tmp_path / "plane.secret").write_text("s3cret")
    load = EngineLoad(own_prompt_tokens=10, own_generation_tokens=1, own_unanswered=2)
    ready = ReplicaReport("m-1", "m", engine.url, ReplicaState.READY, load=load)
    others = [
        msgspec.structs.replace(ready, replica_id="m-2", rank=1),
        msgspec.structs.replace(ready, replica_id="m-3", state=ReplicaState.FAILED),
        msgspec.structs.replace(ready, replica_id="m-4", url="", state=ReplicaState.READY),
    ]
    with serving({"/directory": directory(ready, *others)}) as cell:
        (found,) = Plane(settings(tmp_path, directories=(cell.url,))).counted()
        assert {secret for _, secret in (*cell.asked, *engine.asked)} == {"Bearer s3cret"}
    assert (found.replica_id, found.counters, found.own, found.own_unanswered) == (
        "m-1",
        Counts(110, 51),
        Counts(10, 1),
        2,
    )


@pytest.mark.parametrize("page", [None, b"\xff<html>"])
def test_a_plane_that_does_not_answer_is_refused_in_a_sentence(tmp_path: Path, page: bytes | None) -> None:
    """Nothing follows from a part of it."""
    (tmp_path / "plane.secret").write_text("s3cret")
    pages = {} if page is None else {"/directory": page}
    with serving(pages) as cell, pytest.raises(Refusal, match=r"does not answer \(status 404\)|something else"):
        Plane(settings(tmp_path, directories=(cell.url,))).counted()


def test_other_figures_of_an_engine_are_left_alone() -> None:
    """Summed over cores and servers."""
    assert figures(PAGE + 'ray_other{a="b"} 7\n')["vllm:prompt_tokens_total"] == 110.0
    assert set(figures("ray_other 7\n")) == set()


def looks(*counted: Counted) -> Callable[[], list[Counted]]:
    """An engine that says these one after the other, and the last for ever."""
    left = list(counted)
    return lambda: [left.pop(0) if len(left) > 1 else left[0]]


def test_a_moment_at_rest_is_waited_for(tmp_path: Path) -> None:
    """Twice the same, and nothing runs; without one the last look counts, and says that the engine is busy."""
    clock = Clock(0.0)
    with SqlitePlace(tmp_path).open() as store:

        def compared(*counted: Counted) -> tuple[Verdict, float]:
            began = clock.now
            (found,) = balances(store, looks(*counted), 30.0, clock, clock.advance)
            return found.verdict, clock.now - began

        rest = Counted("a", "m", Counts(10, 1), Counts(10, 1))
        busy = msgspec.structs.replace(rest, counters=Counts(15, 1), requests=1)
        assert compared(rest) == (Verdict.EQUAL, APART_S)
        assert compared(busy, busy, busy, rest) == (Verdict.EQUAL, 2 * APART_S)
        verdict, took_s = compared(busy)
        assert verdict is Verdict.BUSY and took_s <= 30.0


def test_a_busy_engine_is_never_said_to_have_counted_less(tmp_path: Path) -> None:
    """Calls that end while it is asked are in its counters before they are in the ledger that these are held against."""
    done: list[Usage] = []
    with SqlitePlace(tmp_path).open() as store:

        def counted() -> list[Counted]:
            said = Counts(10 * len(done), 2 * len(done))
            done.append(Usage(10, 2))
            fill(store, "a", done[-1])
            return [Counted("a", "m", said, requests=1)]

        clock = Clock(0.0)
        (found,) = balances(store, counted, 10.0, clock, clock.advance)
    assert found.verdict is Verdict.BUSY and len(done) > 2


def fill(store: Store, replica_id: str, usage: Usage, **changed: object) -> None:
    call = record(request_id=f"r{id(usage)}", replica_id=replica_id, usage=usage, **changed)
    with Ledger(store, clock=Clock(2e9)) as ledger:
        ledger.open(call)
        ledger.close(call)


def run(home: Path, *arguments: str) -> tuple[int, str]:
    cli = typer.Typer()
    cli.command()(reconciliation.check)
    done = CliRunner().invoke(cli, ["--wait-s", "0", *arguments], obj=Settings(home=home), catch_exceptions=False)
    return done.exit_code, done.stdout


def test_the_command_tells_equal_from_unexplained(tmp_path: Path, engine: Served) -> None:
    """By its exit code too, and names the calls that explain a difference."""
    arguments = ("--engine", engine.url)
    with SqlitePlace(tmp_path).open() as store:
        replica_id = f"{engine.url}#m"
        fill(store, replica_id, Usage(100, 50))
        code, said = run(tmp_path, *arguments)
        assert code == 1 and said.splitlines()[1].split()[-3:] == ["10", "1", "unexplained"]

        fill(store, replica_id, Usage(9, 1, estimated_by="last_chunk"), outcome=Outcome.DISCONNECTED)
        code, said = run(tmp_path, *arguments)
        assert code == 0 and said.splitlines()[1].endswith("explained")
        assert "1 calls may have cost more than they are billed for" in said and "cut_or_estimated" in said

        fill(store, replica_id, Usage(10, 1))
        code, said = run(tmp_path, *arguments, "--json")
        (row,) = json.loads(said)
        assert code == 0 and row["verdict"] == "equal" and row["left"] == {"prompt_tokens": 0, "generation_tokens": 0}


def test_settings_that_name_no_engine_are_refused(tmp_path: Path) -> None:
    """Unless `serving up` has run in this home: then its own are meant."""
    with pytest.raises(Refusal, match="has never run in this home"):
        run(tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "gateway-settings.yaml").write_text("gateway: {engines: ['http://127.0.0.1:1']}\n")
    with pytest.raises(Refusal, match=r"127\.0\.0\.1:1/metrics does not answer"):
        run(tmp_path)
