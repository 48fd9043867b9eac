"""Chaos: gateways, engines, the directory, the database and the shared counters are killed again and again under calls of every
kind, some of whose clients leave in the middle. What the ledger says is what the clients of completed calls were told.

`CHAOS_CALLS` says how many calls there are (300 by default; 2,000 take some minutes).
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import msgspec
import pytest

from serving.gateway.ledger.usage import CallRow
from serving.gateway.policies import Policy
from tests.gateway import postgres, valkey
from tests.long.company import Company
from tests.stack.conftest import TINY
from tests.stack.http import bearer
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

CALLS = int(os.environ.get("CHAOS_CALLS", "300"))
CALLERS = 6
BATCH = 50
TOKENS = 16
#: Seconds until the rows of a gateway that died are closed by another one.
CLOSED_S = 180.0
ASKED: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Tell me."}], "max_completion_tokens": TOKENS},
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": TOKENS},
    "/v1/responses": {"input": "Tell me.", "max_output_tokens": TOKENS},
    "/v1/messages": {"messages": [{"role": "user", "content": "Tell me."}], "max_tokens": TOKENS},
}
WITH_USAGE = {"/v1/chat/completions", "/v1/completions"}


class Told(msgspec.Struct, frozen=True):
    """What a client learned of its call: its id, and its tokens if it had all of the answer."""

    request_id: str
    tokens: tuple[int, int] | None = None


class Clients:
    """Callers who ask until there were so many calls, and enough else has happened."""

    def __init__(self, company: Company, count: int) -> None:
        self._company = company
        self._count = count
        self._random = random.Random(5)
        self.told: list[Told] = []
        self.statuses: Counter[str] = Counter()

    def run(self, is_enough: Callable[[], bool]) -> None:
        first = 0
        with ThreadPoolExecutor(CALLERS) as pool:
            while first < self._count or not is_enough():
                draws = [(self._random.random(), self._random.randrange(4000)) for _ in range(BATCH)]
                list(pool.map(self._one, range(first, first + BATCH), draws))
                first += BATCH

    def _one(self, number: int, drawn: tuple[float, int]) -> None:
        chance, cut_bytes = drawn
        path = list(ASKED)[number % 4]
        is_streamed = number % 8 < 5
        body = ASKED[path] | {"model": self._company.model, "stream": is_streamed, "temperature": 1.0}
        if is_streamed and path in WITH_USAGE:
            body |= {"stream_options": {"include_usage": True}}
        request_id = f"chaos-{number:06}"
        # The other one where the first refuses connections, as a balancer does.
        for gateway in (self._company.gateways[number % 2], self._company.gateways[1 - number % 2]):
            try:
                said = self._ask(gateway.port, path, body, request_id, cut_bytes if chance < 0.15 else None)
            except (OSError, http.client.HTTPException) as error:
                self.statuses[type(error).__name__] += 1
                if not isinstance(error, ConnectionRefusedError):
                    return
            else:
                tokens = None if said is None else told(path, said, is_streamed=is_streamed)
                self.statuses["left" if said is None else "whole" if tokens else "an error"] += 1
                self.told.append(Told(request_id, tokens))
                return

    def _ask(
        self, port: int, path: str, body: dict[str, object], request_id: str, cut_bytes: int | None
    ) -> bytes | None:
        """The answer; None where its client has left."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            headers = {"Content-Type": "application/json", "X-Request-Id": request_id} | bearer(self._company.key)
            connection.request("POST", path, json.dumps(body), headers)
            if cut_bytes is not None:
                connection.getresponse().read(cut_bytes)
                return None
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != 200:
                self.statuses[f"{answer.status} {json.loads(said)['error'].get('code')}"] += 1
                time.sleep(0.05)
            return said
        finally:
            connection.close()


def told(path: str, said: bytes, *, is_streamed: bool) -> tuple[int, int] | None:
    """Prompt and completion tokens as an answer says them; None where it is not whole."""
    events = [json.loads(line[6:]) for line in said.splitlines() if line.startswith(b"data: {")]
    if not is_streamed:
        events = [json.loads(said)]
    if any("error" in event and event["error"] for event in events):
        return None
    if path == "/v1/messages" and is_streamed:
        if not events or events[-1]["type"] != "message_stop":
            return None
        usages = [event["usage"] for event in events if event["type"] == "message_delta"]
        started = events[0]["message"]["usage"]
        return int(usages[-1].get("input_tokens") or started["input_tokens"]), int(usages[-1]["output_tokens"])
    if path == "/v1/responses" and is_streamed:
        ends = [event["response"] for event in events if event["type"] in ("response.completed", "response.incomplete")]
        events = ends
    elif is_streamed and b"data: [DONE]" not in said:
        return None
    usage = next((event["usage"] for event in reversed(events) if event.get("usage")), None)
    if usage is None:
        return None
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    return int(prompt), int(usage.get("completion_tokens", usage.get("output_tokens")))


def chaos(acts: dict[str, Callable[[], None]], until_over: threading.Thread, done: Counter[str]) -> None:
    """Each of the acts in turn, as long as the thread runs; `done` counts them.

    Here, and not in a thread of its own: what a thread starts to die with its parent dies with that thread.
    """
    drawn = random.Random(11)
    for name in cycle(acts):
        until_over.join(drawn.uniform(0.2, 1.5))
        if not until_over.is_alive():
            break
        acts[name]()
        done[name] += 1


def test_the_ledger_equals_what_completed_calls_were_told(tmp_path: Path) -> None:
    """To the token, whatever was killed meanwhile; every call has one row, and none stays open."""
    policy = Policy(tokens_per_day=10**9, requests_per_minute=10**6, open_requests=1_000)
    with postgres.running() as server, valkey.running() as counters, server.new_database() as database:
        settings = {"SERVING_GATEWAY__COUNTERS__URL_FILE": str(counters.url_file())}
        company = Company(tmp_path, TINY, server, database, settings)
        clients = Clients(company, CALLS)

        def restart_postgres() -> None:
            server.stop()
            time.sleep(0.5)
            server.start()

        def restart_counters() -> None:
            counters.kill()
            time.sleep(0.5)
            counters.start()

        def restart_directory() -> None:
            company.register.kill()
            time.sleep(0.5)
            company.register.start()

        acts: dict[str, Callable[[], None]] = {
            "gateway 0": lambda: company.restart_gateway(0),
            "counters": restart_counters,
            "engine 0": lambda: company.restart_engine(0),
            "postgres": restart_postgres,
            "gateway 1": lambda: company.restart_gateway(1),
            "directory": restart_directory,
            "engine 1": lambda: company.restart_engine(1),
        }
        with company.running(policy):
            done: Counter[str] = Counter()
            calling = threading.Thread(target=clients.run, args=(lambda: len(done) == len(acts),))
            calling.start()
            chaos(acts, calling, done)
            until(lambda: all(row.outcome != "open" for row in company.rows().values()), CLOSED_S, 1.0)
            rows = company.rows()
    differing = difference(clients.told, rows)
    print(f"\n{dict(done)}\n{dict(clients.statuses)}\n{Counter(row.outcome for row in rows.values())}\n{differing}")
    assert differing == {}
    completed = [it for it in clients.told if it.tokens]
    assert len(completed) > CALLS / 3


def difference(told: list[Told], rows: dict[str, CallRow]) -> dict[str, tuple[object, ...]]:
    """Completed calls whose row says other tokens than their client was told."""
    found: dict[str, tuple[object, ...]] = {}
    for it in told:
        if it.tokens is None:
            continue
        row = rows.get(it.request_id)
        if row is None:
            found[it.request_id] = (it.tokens, None)
        elif (row.prompt_tokens, row.completion_tokens) != it.tokens:
            found[it.request_id] = (it.tokens, row.outcome, row.prompt_tokens, row.completion_tokens, row.estimated_by)
    return found
