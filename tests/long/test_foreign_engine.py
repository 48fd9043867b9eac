"""`serving gateway --engine URL` before a vLLM server that somebody else started: no Ray, no directory, no secret."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import openai
import psutil
import pytest

from serving import catalog
from serving.config import EngineSettings
from serving.engine import command, processes
from serving.engine.checkpoints import store as checkpoints
from serving.engine.command import EngineSpec
from serving.gateway.ledger.usage import CallRow, calls
from serving.gateway.store.store import Store
from tests.long.leaving import answering
from tests.stack.conftest import SMOLLM2
from tests.stack.http import bearer, call
from tests.stack.running import CACHE, free_port
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

START_TIMEOUT_S = 300.0
#: Shorter than the default of 30 s, which would only make this test wait.
REPLICA_WAIT_S = 2.0
#: Seconds within which "not now" must be said: the wait above, and room for a busy machine.
REFUSAL_TIMEOUT_S = 15.0
CHAT = {"model": SMOLLM2, "messages": [{"role": "user", "content": "Name the capital of France."}], "temperature": 0}


class Engine(NamedTuple):
    url: str
    kill: Callable[[], None]


class Gateway(NamedTuple):
    url: str
    home: Path
    process: psutil.Process
    engine: Engine

    @property
    def key(self) -> str:
        return (self.home / "admin.key").read_text().strip()

    def ledger(self) -> list[CallRow]:
        with Store.open(self.home) as store:
            return calls(store, limit=1000)


@contextmanager
def foreign_engine() -> Iterator[Engine]:
    """vLLM's own `serve`, as its documentation starts it; what is ours is only that nobody of it is left at the end."""
    model = catalog.find(SMOLLM2)
    checkpoint = str(checkpoints.ensure(model, CACHE, print))
    port, tree = free_port(), processes.new_tree()
    line = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", checkpoint, "--served-model-name", SMOLLM2]
    line += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(model.context_tokens)]
    line += ["--dtype", model.cpu_dtype, "--enforce-eager", "--gpu-memory-utilization", "0.25"]
    with tempfile.TemporaryDirectory(prefix="foreign-") as scratch, open(f"{scratch}/log", "wb") as log:
        spec = EngineSpec(SMOLLM2, checkpoint, model.task, model.context_tokens, EngineSettings(), "", scratch, scratch)
        environment = command.environment(spec, tree, Path(scratch), os.environ)
        server = subprocess.Popen(line, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def kill() -> None:
            processes.kill_all(lambda: processes.of_tree(tree))
            server.wait()

        try:
            until(lambda: server.poll() is not None or _answers(f"http://127.0.0.1:{port}", "/health"), START_TIMEOUT_S)
            assert server.poll() is None, Path(scratch, "log").read_text()
            yield Engine(f"http://127.0.0.1:{port}", kill)
        finally:
            kill()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway alone, with a home that has never been used."""
    home, port = tmp_path_factory.mktemp("home"), free_port()
    environment = {"SERVING_HOME": str(home), "SERVING_GATEWAY__TIMEOUTS__REPLICA_WAIT_S": str(REPLICA_WAIT_S)}
    with foreign_engine() as engine, (home / "gateway.log").open("wb") as log:
        line = [sys.executable, "-m", "serving", "gateway", "--engine", engine.url, "--port", str(port)]
        with subprocess.Popen(line, env=os.environ | environment, stdout=log, stderr=log) as process:
            try:
                url = f"http://127.0.0.1:{port}"
                until(lambda: _answers(url, "/health/models"))
                yield Gateway(url, home, psutil.Process(process.pid), engine)
            finally:
                process.terminate()


def _answers(url: str, path: str) -> bool:
    try:
        return call(url, "GET", path)[0] == 200
    except OSError:
        return False


def engine_counts(engine: Engine) -> dict[str, float]:
    """vLLM's own token counters; nobody asks for a secret here."""
    status, _, text = call(engine.url, "GET", "/metrics")
    assert status == 200
    lines = [line.partition("{") for line in text.decode().splitlines() if line.startswith("vllm:")]
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    return {name: float(rest.rpartition(" ")[2]) for name, _, rest in lines if name in names}


def test_it_answers_with_a_key_and_alone(gateway: Gateway) -> None:
    """Its models are listed, chat is answered, only with the key it made; it is one process, without Ray or secret."""
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0)
    assert [card.id for card in client.models.list()] == [SMOLLM2]
    answer = client.chat.completions.create(**CHAT, max_tokens=16)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert call(gateway.url, "POST", "/v1/chat/completions", CHAT)[0] == 401
    assert call(gateway.url, "POST", "/v1/chat/completions", CHAT, bearer("sk-wrong"))[0] == 401
    assert gateway.process.children() == [] and not (gateway.home / "plane.secret").exists()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_row_holds_what_the_engine_counted(gateway: Gateway, stream: bool) -> None:
    """Exact tokens, though this engine was started without any of our flags."""
    before = engine_counts(gateway.engine)
    body = CHAT | {"max_tokens": 12, "stream": stream}
    status, headers, _ = call(gateway.url, "POST", "/v1/chat/completions", body, bearer(gateway.key))
    assert status == 200
    closed = ("ok", headers["x-request-id"])
    (row,) = until(lambda: [row for row in gateway.ledger() if (row.outcome, row.request_id) == closed])
    billed = {"vllm:prompt_tokens_total": row.prompt_tokens, "vllm:generation_tokens_total": row.completion_tokens}
    until(lambda: {name: now - before[name] for name, now in engine_counts(gateway.engine).items()} == billed)
    assert row.estimated_by is None and row.prompt_tokens and row.completion_tokens


def test_a_killed_engine_is_503_with_retry_after(gateway: Gateway) -> None:
    """Runs last here. The stream under way ends in an error event; the next call is told when to come back, soon."""
    long = CHAT | {"max_tokens": 3000, "min_tokens": 2900, "stream": True}
    with answering(gateway.url, "/v1/chat/completions", long, gateway.key) as stream:
        stream.readline()
        gateway.engine.kill()
        assert b'"engine_failed"' in stream.read()
    asked_at = time.monotonic()
    status, headers, answer = call(gateway.url, "POST", "/v1/chat/completions", CHAT, bearer(gateway.key))
    assert status == 503 and int(headers["retry-after"]) > 0 and b'"no_replica_ready"' in answer
    assert time.monotonic() - asked_at < REFUSAL_TIMEOUT_S
    assert call(gateway.url, "GET", "/health/models")[0] == 503
    assert call(gateway.url, "GET", "/health/ready")[0] == 200
