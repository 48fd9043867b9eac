"""Prefill and decode apart, on two real engines: one computes prompts, vLLM's NixlConnector moves their KV, the other decodes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from loadtest import environments
from serving.gateway.ledger.usage import CallRow, calls
from serving.gateway.store.store import Store
from tests.exposition import value
from tests.long.company import Gateway
from tests.long.nursery import Nursery
from tests.long.pair import Engine
from tests.stack.conftest import SMOLLM2, TINY
from tests.stack.http import bearer, call
from tests.stack.running import CACHE, free_port
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

#: Sentences of a prompt, more than twice what a gateway hands over.
LONG = 60
OUTPUT_TOKENS = 16
#: Calls under way when the prefill engine is killed.
CALLS = 4
#: Seconds, for a machine that does much else.
PATIENCE_S = 600.0


def nixl() -> Path:
    """The folder with the connector's library, which is installed when this is its first use."""
    python = environments.python(CACHE / "long", "pip-nixl", Path(__file__).parent / "pip" / "nixl.txt")
    (packages,) = python.parent.parent.glob("lib/python*/site-packages")
    return packages


def text(number: int) -> str:
    """A prompt that begins like no other."""
    return f"Record {number}. " + " ".join(f"Ward {ward} has {ward % 7} patients." for ward in range(LONG))


class Apart:
    """A gateway before an engine that decodes and one that computes prompts; every engine is asked only for this model."""

    def __init__(self, home: Path, model: str) -> None:
        self.model = model
        self._folder = str(nixl())
        self.prefill = self._engine(home, "kv_producer")
        self.decode = self._engine(home, "kv_consumer")
        self.nursery = Nursery(self.decode.environment())
        settings = {
            "SERVING_PLANE_SECRET_FILE": str(home / "plane.secret"),
            "SERVING_GATEWAY__ENGINES": json.dumps([self.decode.url]),
            "SERVING_GATEWAY__PREFILL_ENGINES": json.dumps([self.prefill.url]),
            "SERVING_GATEWAY__TIMEOUTS__ENGINE_SILENCE_S": str(5 * PATIENCE_S),
            "SERVING_GATEWAY__TIMEOUTS__REQUEST_TOTAL_S": str(6 * PATIENCE_S),
        }
        self.gateway = Gateway(home / "gateway", settings)
        self._secret = (home / "plane.secret").read_text().split()[0]
        self._direct = 0

    def _engine(self, home: Path, role: str) -> Engine:
        transfer = {"kv_connector": "NixlConnector", "kv_role": role, "kv_load_failure_policy": "recompute"}
        variables = {
            "PYTHONPATH": os.pathsep.join(filter(None, (self._folder, os.environ.get("PYTHONPATH")))),
            "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
            # As between two machines.
            "UCX_TLS": "tcp,self",
        }
        return Engine(home, self.model, ("--kv-transfer-config", json.dumps(transfer)), variables)

    @property
    def key(self) -> str:
        return (self.gateway.home / "admin.key").read_text().strip()

    def ask(self, path: str, body: dict[str, object]) -> dict[str, object]:
        """A whole answer by way of the gateway."""
        status, _, answer = call(
            self.gateway.url, "POST", path, self._sent(body), bearer(self.key), timeout_s=PATIENCE_S
        )
        assert status == 200, answer
        return dict(json.loads(answer))

    def ask_one(self, path: str, body: dict[str, object]) -> dict[str, object]:
        """The same of the engine that decodes alone, which computes the prompt itself, as no tenant before."""
        self._direct += 1
        sent = self._sent(body) | {"cache_salt": f"alone-{self._direct}"}
        status, _, answer = call(self.decode.url, "POST", path, sent, bearer(self._secret), timeout_s=PATIENCE_S)
        assert status == 200, answer
        return dict(json.loads(answer))

    def _sent(self, body: dict[str, object]) -> dict[str, object]:
        return body | {"model": self.model, "temperature": 0}

    def count(self, engine: Engine, name: str, **labels: str) -> float:
        _, _, page = call(engine.url, "GET", "/metrics", headers=bearer(self._secret))
        return value(page, name, **labels)

    def handed(self) -> float:
        """Prompt tokens whose KV the engine that decodes was handed."""
        return self.count(self.decode, "vllm:prompt_tokens_by_source_total", source="external_kv_transfer")

    def computed_elsewhere(self) -> float:
        return self.count(self.prefill, "vllm:prompt_tokens_by_source_total", source="local_compute")

    def handovers(self, handover: str) -> float:
        _, _, page = call(self.gateway.url, "GET", "/metrics")
        return value(page, "serving_gateway_prefill_handovers_total", model=self.model, handover=handover)

    def has_asked(self) -> bool:
        """All calls have reached the engine that computes prompts."""
        there = [it for it in psutil.net_connections("tcp") if it.laddr and it.laddr.port == self.prefill.port]
        return sum(it.status == psutil.CONN_ESTABLISHED for it in there) >= CALLS

    def ended(self, count: int) -> list[CallRow]:
        """The ledger's rows of calls that are over, once there are that many."""

        def rows() -> list[CallRow]:
            with Store.open(self.gateway.home) as store:
                return [row for row in calls(store, limit=1000) if row.outcome != "open"]

        until(lambda: len(rows()) >= count, PATIENCE_S)
        return rows()


@pytest.fixture(scope="module", params=[SMOLLM2, TINY])
def apart(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    """Of a model whose layers all see everything, and of gpt-oss, whose sliding layers have KV blocks of their own."""
    apart = Apart(tmp_path_factory.mktemp("apart"), request.param)
    with ExitStack() as opened:
        opened.callback(apart.nursery.close)
        for engine in (apart.prefill, apart.decode):
            opened.callback(engine.close)
            engine.start(apart.nursery)
        for engine in (apart.prefill, apart.decode):
            engine.until_ready()
        apart.gateway.start()
        opened.callback(apart.gateway.stop)
        apart.gateway.until_ready()
        yield apart


def answers(answer: dict[str, object]) -> list[str]:
    """What was made, without what is drawn anew each time."""
    return list(_texts([answer.get(name) for name in ("choices", "content", "output")]))


def _texts(made: object) -> Iterator[str]:
    if isinstance(made, dict):
        for name, it in made.items():
            if name in ("text", "content", "reasoning", "thinking") and isinstance(it, str):
                yield it
            else:
                yield from _texts(it)
    elif isinstance(made, list):
        for it in made:
            yield from _texts(it)


ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


def body_for(path: str, prompt: str) -> dict[str, object]:
    if path == "/v1/completions":
        return {"prompt": prompt, "max_tokens": OUTPUT_TOKENS}
    if path == "/v1/responses":
        return {"input": prompt, "max_output_tokens": OUTPUT_TOKENS}
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": OUTPUT_TOKENS}


def test_answers_are_one_engine_s_and_no_prompt_is_computed_twice(apart: Apart) -> None:
    """Greedy, by every API: the text equals that of one engine alone. Each handed prompt is another engine's work; it is billed once,
    and who asks the decoding engine for the same prompt under another salt finds nothing of it cached.
    """
    for number, path in enumerate(ROUTES):
        body = body_for(path, text(number))
        answer = apart.ask(path, body)
        cached = apart.count(apart.decode, "vllm:prefix_cache_hits_total")
        billed = sum(row.prompt_tokens for row in apart.ended(number + 1))
        assert apart.handed() == apart.computed_elsewhere() == billed
        alone = apart.ask_one(path, body)
        assert answers(answer) == answers(alone) and answers(alone), path
        assert apart.count(apart.decode, "vllm:prefix_cache_hits_total") == cached
    assert {(row.outcome, row.estimated_by) for row in apart.ended(len(ROUTES))} == {("ok", None)}
    assert (apart.handovers("done"), apart.handovers("failed")) == (len(ROUTES), 0)
    assert apart.count(apart.decode, "vllm:nixl_num_failed_transfers_total") == 0


def test_a_killed_prefill_engine_costs_no_answer(apart: Apart) -> None:
    """-9 while it computes: calls whose prompts it had are answered by the engine that decodes; once it is back it is asked again."""
    before = {row.request_id for row in apart.ended(0)}
    failed = apart.handovers("failed")

    def ask(number: int) -> dict[str, object]:
        body = body_for("/v1/chat/completions", text(100 + number)) | {"min_tokens": OUTPUT_TOKENS}
        return apart.ask("/v1/chat/completions", body)

    with ThreadPoolExecutor(CALLS) as pool:
        asked = [pool.submit(ask, number) for number in range(CALLS)]
        until(apart.has_asked)
        apart.prefill.kill()
        usages = [answer.result()["usage"] for answer in asked]
    assert [usage["completion_tokens"] for usage in usages] == [OUTPUT_TOKENS] * CALLS  # type: ignore[index]
    until(lambda: apart.handovers("failed") > failed)
    rows = [row for row in apart.ended(len(before) + CALLS) if row.request_id not in before]
    assert [(row.outcome, row.completion_tokens) for row in rows] == [("ok", OUTPUT_TOKENS)] * CALLS

    apart.prefill.start(apart.nursery)
    apart.prefill.until_ready()
    done, handed = apart.handovers("done"), apart.handed()
    numbers = iter(range(1000, 2000))

    def is_handed_over() -> bool:
        apart.ask("/v1/completions", body_for("/v1/completions", text(next(numbers))))
        return apart.handovers("done") > done and apart.handed() > handed

    until(is_handed_over, PATIENCE_S)
