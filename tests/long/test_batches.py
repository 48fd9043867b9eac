"""Batches on a real engine: what a running one costs other calls' first tokens, and that each line is billed as the engine counted it."""

from __future__ import annotations

import json
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest
from openai.types import Batch

from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.policies import Policy
from serving.gateway.store.store import Store
from serving.gateway.stored.batches.spare import CAREFUL_LINES
from tests.long.test_embeddings import MINILM
from tests.stack.conftest import SMOLLM2
from tests.stack.running import Stack, running
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

#: Of the batch beside which other calls are timed.
LINES = 10_000
#: Rounds without a batch and with one, each of so many calls, which come by chance, so many a second.
ROUNDS, CALLS, CALLS_PER_S = 4, 40, 0.8
#: Tokens of each of their answers.
TOKENS = 16
#: A hundredth of the prompt tokens that SmolLM2 computes in a second on two cores, as the default is of gpt-oss-120b on H100s.
CAREFUL = {"SERVING_GATEWAY__FILES__CAREFUL_TOKENS_PER_S": "10"}
#: Seconds between two looks at the engine, and how far its figures may lag behind what clients see.
LOOK_S, LAG_S = 0.5, 2.0
ENDED = ("completed", "failed", "expired", "cancelled")

ROUTES: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Tell me about the sea."}], "max_tokens": 9},
    "/v1/completions": {"prompt": "About the sea:", "max_tokens": 7},
    "/v1/responses": {"input": "Tell me about the sea.", "max_output_tokens": 17, "store": False},
    "/v1/embeddings": {"input": "The sea is wide."},
}
GOOD = 30
#: What is wrong with lines beside them: a stream, a value, a field that there is not, a type.
BAD: tuple[dict[str, object], ...] = ({"stream": True}, {"temperature": -1}, {"no_such_field": 1}, {"user": 7})


def client_of(stack: Stack) -> openai.OpenAI:
    """The official client of a tenant that stores, and has batches."""
    with Store.open(stack.home) as store:
        registry = Registry(store, Keyring.open(store), time.time)
        registry.create_tenant("nights", Policy(store_responses=True))
        key = registry.create_key("nights")
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key, max_retries=0, timeout=600)


def line(number: int, route: str, body: dict[str, object]) -> bytes:
    call = {"custom_id": f"line {number}", "method": "POST", "url": route, "body": body}
    return json.dumps(call).encode() + b"\n"


def begun(client: openai.OpenAI, file_id: str, endpoint: str) -> Batch:
    return client.batches.create(input_file_id=file_id, endpoint=endpoint, completion_window="24h")


def completed(client: openai.OpenAI, batch_id: str) -> int:
    """Lines that were answered so far."""
    counts = client.batches.retrieve(batch_id).request_counts
    return counts.completed if counts else 0


def ended(client: openai.OpenAI, batch_id: str) -> Batch:
    def is_over() -> Batch | None:
        found = client.batches.retrieve(batch_id)
        return found if found.status in ENDED else None

    found = until(is_over, 600, 0.5)
    assert found is not None
    return found


@dataclass
class Open:
    """Other calls that are open, and how many were lately."""

    now: int = 0
    changes: list[tuple[float, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def one_more(self) -> Iterator[None]:
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    def _change(self, by: int) -> None:
        with self.lock:
            self.changes.append((time.monotonic(), self.now))
            self.now += by

    def most_since(self, then: float) -> int:
        with self.lock:
            return max([self.now, *(before for at, before in self.changes if at >= then)])


def ttft_s(client: openai.OpenAI, number: int, calls: Open) -> float:
    """Seconds to the first token of a call whose prompt no other has, and which is read to its end."""
    prompt = f"Story number {number}. " + "Once upon a time there was a fox that lived near the sea. " * 8
    with calls.one_more():
        began = time.monotonic()
        stream = client.completions.create(
            model=SMOLLM2, prompt=prompt, max_tokens=TOKENS, stream=True, extra_body={"min_tokens": TOKENS}
        )
        first_s, reason = None, None
        for event in stream:
            if event.choices:
                first_s = first_s or time.monotonic() - began
                reason = event.choices[0].finish_reason or reason
    assert first_s is not None and reason == "length"
    return first_s


def round_of(client: openai.OpenAI, first: int, calls: Open) -> list[float]:
    """The TTFT of calls at moments of chance, which are the same in each round."""
    chance = random.Random(7)
    taken: list[Future[float]] = []
    with ThreadPoolExecutor(CALLS) as pool:
        for number in range(CALLS):
            time.sleep(chance.expovariate(CALLS_PER_S))
            taken.append(pool.submit(ttft_s, client, first + number, calls))
        return [it.result() for it in taken]


@contextmanager
def watched(stack: Stack, calls: Open) -> Iterator[list[int]]:
    """Calls at the engine that are none of ours, at each look: lines."""
    seen: list[int] = []
    is_over = threading.Event()

    def watch() -> None:
        names = "vllm:num_requests_running", "vllm:num_requests_waiting"
        while not is_over.wait(LOOK_S):
            since = time.monotonic() - LAG_S
            families = stack.metric_families(*names)
            at_engine = sum(int(it.value) for family in families for it in family.samples if it.name in names)
            seen.append(at_engine - calls.most_since(since))

    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(watch)
        try:
            yield seen
        finally:
            is_over.set()
            task.result()


def p95(taken: list[float]) -> float:
    return statistics.quantiles(taken, n=20, method="inclusive")[-1]


def round_beside_a_batch(stack: Stack, client: openai.OpenAI, file_id: str, first: int, calls: Open) -> list[float]:
    """A round while a batch runs, of which lines are answered meanwhile, and no more are at the engine than may be beside other calls."""
    batch_id = begun(client, file_id, "/v1/chat/completions").id
    with watched(stack, calls) as lines:
        before = until(lambda: completed(client, batch_id), 120, 0.5)
        times = round_of(client, first, calls)
        done = completed(client, batch_id) - before
    client.batches.cancel(batch_id)
    assert ended(client, batch_id).status == "cancelled"
    assert 0 < done < LINES and max(lines) <= CAREFUL_LINES, (done, lines)
    print(f"{done} lines were answered beside a round of {CALLS} calls")
    return times


def test_other_calls_beside_ten_thousand_lines(tmp_path: Path) -> None:
    """Each is answered, lines go on, and at no moment are more of them at the engine than may be beside other calls. The ratio of
    first tokens' times is printed: it is for a quiet machine to judge.
    """
    calls = Open()
    times: dict[str, list[list[float]]] = {"without": [], "with": []}
    with running(tmp_path, SMOLLM2, CAREFUL) as stack, client_of(stack) as client:
        chat = ROUTES["/v1/chat/completions"] | {"model": SMOLLM2}
        content = b"".join(line(number, "/v1/chat/completions", chat) for number in range(LINES))
        file = client.files.create(file=("night.jsonl", content), purpose="batch")
        round_of(client, 0, calls)
        for number in range(1, ROUNDS + 1):
            times["without"].append(round_of(client, 2 * number * CALLS, calls))
            times["with"].append(round_beside_a_batch(stack, client, file.id, (2 * number + 1) * CALLS, calls))
    measures: dict[str, Callable[[list[float]], float]] = {"p95": p95, "median": statistics.median}
    for name, measure in measures.items():
        without, beside = (statistics.median(measure(it) for it in rounds) for rounds in times.values())
        print(f"TTFT, {name}: {without:.3f} s without a batch, {beside:.3f} s beside one: {beside / without:.2f} times")
    print({name: [round(p95(it), 3) for it in rounds] for name, rounds in times.items()})


@pytest.fixture(scope="module", params=[SMOLLM2, MINILM])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp(request.param), request.param) as it:
        yield it


def test_a_batch_is_billed_as_the_engine_counted(stack: Stack) -> None:
    """Good lines and bad ones, by every API that batches may call: each answer is in its file and in the bill once, what is wrong
    fails alone and costs nothing, and not one token is left.
    """
    routes = [it for it in ROUTES if (it == "/v1/embeddings") is (stack.model == MINILM)]
    tokens = [0, 0]
    with client_of(stack) as client:
        for route in routes:
            good = ROUTES[route] | {"model": stack.model}
            bodies = [good | (BAD[number // 10] if number % 10 == 3 else {}) for number in range(GOOD + len(BAD))]
            content = b"".join(line(number, route, body) for number, body in enumerate(bodies))
            file = client.files.create(file=("in.jsonl", content), purpose="batch")
            batch = ended(client, begun(client, file.id, route).id)
            assert batch.status == "completed" and batch.output_file_id and batch.error_file_id and batch.usage
            answers = [json.loads(it) for it in client.files.content(batch.output_file_id).text.splitlines()]
            errors = [json.loads(it) for it in client.files.content(batch.error_file_id).text.splitlines()]
            assert len(answers) == GOOD and {it["response"]["status_code"] for it in answers} == {200}
            assert [(it["line"], it["response"]["status_code"]) for it in errors] == [
                (10 * number + 4, 400) for number in range(len(BAD))
            ], errors
            tokens[0] += batch.usage.input_tokens
            tokens[1] += batch.usage.output_tokens
    found = stack.ledger_check()
    billed = found["billed"]
    assert found["verdict"] == "equal" and billed["completed_requests"] == GOOD * len(routes), found
    assert [billed["completed"][it] for it in ("prompt_tokens", "generation_tokens")] == tokens, found
    lines = [row for row in stack.ledger() if row.priority == "batch" and row.status == 200]
    assert len(lines) == GOOD * len(routes)
