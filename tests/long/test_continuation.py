"""Streams go on when their engine is killed: two real engines, one of them killed (-9) in the middle of several answers, again
and again; and, because each kill costs the start of an engine, many more streams whose connection to it is cut at a random byte.
Greedy answers must be those of an undisturbed run; sampled ones must be whole.

`SERVING_KILLS` and `SERVING_CUTS` set how many streams are to lose their engine so (8 and 100 by default).
"""

from __future__ import annotations

import http.client
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from serving import catalog
from serving.config import EngineSettings, ModelSettings, Settings
from serving.engine import command, processes
from serving.engine.checkpoints import bodies
from serving.engine.checkpoints import store as checkpoints
from serving.engine.checkpoints.conversations import REASONED, TOOL_CALLED
from serving.engine.specs import engine_spec
from serving.gateway.ledger.usage import CallRow, calls
from serving.gateway.store.store import Store
from serving.secret import create_if_absent
from tests.long.cutting import Cutter
from tests.stack.conftest import SMOLLM2, TINY
from tests.stack.http import bearer, call
from tests.stack.running import CACHE, free_port
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("SERVING_KILLS", "8"))
CUTS = int(os.environ.get("SERVING_CUTS", "100"))
START_TIMEOUT_S = 300.0
#: Streams that run side by side, over two engines.
STREAMS = 8
#: Of these, greedy ones; the others are sampled.
GREEDY = 6
CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
)
TEXT = "Tell me a long story about a fox, a river and a lighthouse keeper."
LONG: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 96},
    COMPLETIONS: {"prompt": "Once upon a time", "max_tokens": 96},
    RESPONSES: {"input": TEXT, "max_output_tokens": 96},
    MESSAGES: {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 96},
}
#: What each model is asked: plain text, and Harmony's analysis, tool calls and final answers.
ASKED: dict[str, list[tuple[str, dict[str, Any]]]] = {
    SMOLLM2: list(LONG.items()),
    TINY: [
        (CHAT, bodies.chat_body(REASONED, TINY)),
        (CHAT, bodies.chat_body(TOOL_CALLED, TINY)),
        (RESPONSES, bodies.responses_body(REASONED, TINY)),
        (RESPONSES, bodies.responses_body(TOOL_CALLED, TINY)),
        (MESSAGES, bodies.messages_body(REASONED, TINY)),
        (MESSAGES, bodies.messages_body(TOOL_CALLED, TINY)),
    ],
}


class Engine:
    """One vLLM server with our middleware, that can be killed and started again at its address."""

    def __init__(self, home: Path, model: str) -> None:
        self._home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        found = catalog.find(model)
        settings = Settings(home=home, engine=EngineSettings(memory_share=0.15))
        checkpoint = checkpoints.ensure(found, CACHE, print)
        self._spec = engine_spec(found, ModelSettings(name=model), checkpoint, settings, settings.secret_file)
        self._tree = ""
        self.server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._tree = processes.new_tree()
        scratch = self._home / self._tree
        scratch.mkdir(parents=True)
        environment = command.environment(self._spec, self._tree, scratch, os.environ)
        with (scratch / "log").open("wb") as log:
            line = command.arguments(self._spec, self.port)
            self.server = subprocess.Popen(line, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def until_ready(self) -> None:
        def is_over() -> bool:
            assert self.server is not None
            assert self.server.poll() is None, (self._home / self._tree / "log").read_text()[-4000:]
            return _answers(self.url, "/health")

        until(is_over, START_TIMEOUT_S)

    def kill(self) -> None:
        """-9 to every process of it."""
        processes.kill_all(lambda: processes.of_tree(self._tree))
        assert self.server is not None
        self.server.wait()


def _answers(url: str, path: str) -> bool:
    try:
        return call(url, "GET", path)[0] == 200
    except OSError:
        return False


class World:
    """A gateway before two engines of a model."""

    def __init__(self, home: Path, model: str) -> None:
        self.home, self.model = home, model
        self.engines = [Engine(home / "one", model), Engine(home / "two", model)]
        #: A way to each engine that a test may cut.
        self.cutters = [Cutter(engine.url) for engine in self.engines]
        self.url = f"http://127.0.0.1:{free_port()}"
        self.key = ""

    @contextmanager
    def running(self) -> Iterator[None]:
        environment = {
            "SERVING_HOME": str(self.home),
            "SERVING_PLANE_SECRET_FILE": str(self.home / "plane.secret"),
            # Here more streams lose their engine than in any fleet.
            "SERVING_GATEWAY__RETRIES__SHARE": "1",
        }
        create_if_absent(self.home)
        for engine in self.engines:
            (self.home / engine._home.name).mkdir(exist_ok=True)
            (engine._home / "plane.secret").symlink_to(self.home / "plane.secret")
            engine.start()
        with ExitStack() as opened:
            for engine, cutter in zip(self.engines, self.cutters, strict=True):
                opened.callback(engine.kill)
                opened.enter_context(cutter.running())
            for engine in self.engines:
                engine.until_ready()
            line = [sys.executable, "-m", "serving", "gateway", "--port", self.url.rpartition(":")[2]]
            for cutter in self.cutters:
                line += ["--engine", cutter.url]
            with (self.home / "gateway.log").open("wb") as log:
                gateway = subprocess.Popen(line, env=os.environ | environment, stdout=log, stderr=log)
            try:
                until(lambda: (self.home / "admin.key").exists() and _answers(self.url, "/health/ready"), 60.0)
                self.key = (self.home / "admin.key").read_text().strip()
                until(lambda: self.metric("serving_gateway_replicas", 'state="ready"') == 2, 60.0)
                yield
            finally:
                gateway.terminate()
                gateway.wait()

    def metric(self, name: str, label: str = "") -> float:
        _, _, page = call(self.url, "GET", "/metrics")
        lines = [line for line in page.decode().splitlines() if line.startswith((name + "{", name + " "))]
        return sum(float(line.rpartition(" ")[2]) for line in lines if label in line)

    def billed(self, request_id: str) -> tuple[object, ...]:
        """What a call that is over has cost, and the rule if it is an estimate."""

        def closed() -> CallRow | None:
            with Store.open(self.home) as store:
                rows = [row for row in calls(store, limit=10_000) if row.request_id == request_id]
            return next((row for row in rows if row.outcome != "open"), None)

        row = until(closed)
        assert row is not None and row.outcome == "ok", row
        return row.prompt_tokens, row.completion_tokens, row.estimated_by

    def stream(self, path: str, body: dict[str, Any], seen: Callable[[], None]) -> tuple[str, list[dict[str, Any]]]:
        """Request id and events of one streamed answer; `seen` is called at each event."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=300)
        try:
            payload = json.dumps(body | {"model": self.model, "stream": True})
            connection.request("POST", path, payload, {"Content-Type": "application/json"} | bearer(self.key))
            answer = connection.getresponse()
            events = []
            for raw in answer:
                if raw.startswith(b"data: {"):
                    events.append(json.loads(raw[6:]))
                    seen()
            assert answer.status == 200, events
            return answer.headers["x-request-id"], events
        finally:
            connection.close()


#: What an answer says, in any of the APIs, and how it ended.
SAYING = frozenset(
    [
        "content",
        "reasoning",
        "text",
        "delta",
        "thinking",
        "partial_json",
        "arguments",
        "name",
        "finish_reason",
        "stop_reason",
    ]
)
ENDINGS = frozenset({"message_stop", "response.completed", "response.incomplete"})


def texts(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """All that an answer says: what is said in pieces is joined, because under load an event has several tokens."""
    said: list[tuple[str, str]] = []

    def walk(value: Any, name: str = "") -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                walk(below, key)
        elif isinstance(value, list):
            for below in value:
                walk(below, name)
        elif isinstance(value, str) and name in SAYING and value:
            if said and said[-1][0] == name:
                said[-1] = name, said[-1][1] + value
            else:
                said.append((name, value))

    for event in events:
        walk({key: below for key, below in event.items() if key != "response"})
    return said


def is_whole(events: list[dict[str, Any]]) -> bool:
    """No error, numbered without a gap where events are numbered, one id, and one end."""
    if any("error" in event for event in events):
        return False
    numbers = [event["sequence_number"] for event in events if "sequence_number" in event]
    ids = {event["id"] for event in events if "choices" in event}
    endings = sum(
        event.get("type") in ENDINGS or any(choice.get("finish_reason") for choice in event.get("choices", ()))
        for event in events
    )
    return numbers == list(range(len(numbers))) and len(ids) <= 1 and endings == 1


class Countdown:
    """Set when so many events have passed, of all streams together."""

    def __init__(self, events: int) -> None:
        self.over = threading.Event()
        self._left = events
        self._lock = threading.Lock()

    def count(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left <= 0:
                self.over.set()


class Kills:
    """Rounds of streams on two engines, one of which is killed in the middle of each, and what became of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked = ASKED[world.model]
        self._drawn = random.Random(7)
        self.table: Counter[str] = Counter()
        greedy = [self._stream(number, 0.0, lambda: None) for number in range(len(self._asked))]
        self._plain = [texts(events) for _, events in greedy]
        self._billed = [world.billed(request_id) for request_id, _ in greedy]
        self._events = max(len(events) for _, events in greedy)

    def _stream(self, number: int, temperature: float, seen: Callable[[], None]) -> tuple[str, list[dict[str, Any]]]:
        path, body = self._asked[number % len(self._asked)]
        return self._world.stream(path, body | {"temperature": temperature}, seen)

    def cut(self) -> None:
        """One round of streams whose connections are cut."""
        with ThreadPoolExecutor(STREAMS) as pool:
            running = [
                pool.submit(self._stream, number, 0.0 if number < GREEDY else 0.8, lambda: None)
                for number in range(STREAMS)
            ]
            for number, stream in enumerate(running):
                self._judge(number, *stream.result())

    def kill(self, engine: Engine) -> None:
        """One round; the engine is back at its end."""
        countdown = Countdown(self._drawn.randrange(STREAMS, STREAMS * self._events * 3 // 4))
        with ThreadPoolExecutor(STREAMS) as pool:
            running = [
                pool.submit(self._stream, number, 0.0 if number < GREEDY else 0.8, countdown.count)
                for number in range(STREAMS)
            ]
            countdown.over.wait(120)
            engine.kill()
            for number, stream in enumerate(running):
                self._judge(number, *stream.result())
        engine.start()
        engine.until_ready()
        until(lambda: self._world.metric("serving_gateway_replicas", 'state="ready"') == 2, 60.0)

    def _judge(self, number: int, request_id: str, events: list[dict[str, Any]]) -> None:
        self.table["streams"] += 1
        plain, said = self._plain[number % len(self._plain)], texts(events)
        billed = self._world.billed(request_id)
        if not is_whole(events):
            self.table["failed"] += 1
            print("FAILED", self._asked[number % len(self._asked)][0], events[-3:])
        elif number >= GREEDY:
            self.table["sampled, whole"] += 1
        elif said != plain:
            self.table["greedy, otherwise"] += 1
            print("WAS", plain, "IS", said)
        elif billed != self._billed[number % len(self._billed)]:
            self.table["billed otherwise"] += 1
            print("BILLED", billed, self._billed[number % len(self._billed)])
        else:
            self.table["greedy, as undisturbed, billed alike"] += 1


@pytest.mark.parametrize("model", [SMOLLM2, TINY])
def test_streams_survive_the_kills_of_their_engines(tmp_path: Path, model: str) -> None:
    """None fails; greedy ones say what they say undisturbed (near ties may turn, and are counted), billed once and exactly."""
    world = World(tmp_path, model)
    with world.running():
        kills, rounds, went_on = Kills(world), 0, 0
        for cutter in world.cutters:
            cutter.is_cutting = True
        while went_on < CUTS:
            kills.cut()
            went_on = int(world.metric("serving_gateway_continuations_total"))
        for cutter in world.cutters:
            cutter.is_cutting = False
        print(f"{model}: {went_on} cut streams went on, {dict(kills.table)}", flush=True)
        while went_on < CUTS + KILLS and rounds < KILLS:
            kills.kill(world.engines[rounds % 2])
            rounds += 1
            went_on = int(world.metric("serving_gateway_continuations_total"))
            print(f"{model}: {rounds} kills, {went_on} streams went on, {dict(kills.table)}", flush=True)
    table = kills.table
    assert went_on >= CUTS + KILLS and not table["failed"] and not table["billed otherwise"]
    assert table["greedy, otherwise"] <= table["greedy, as undisturbed, billed alike"] / 20
