"""LoRA adapters through the whole stack: asked for by name, loaded then, evicted, added and withdrawn without a restart."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import openai
import pytest

from serving.config import AdapterSettings
from serving.wire import ReplicaState
from tests import peft
from tests.stack.conftest import SMOLLM2
from tests.stack.http import bearer, call
from tests.stack.running import Stack, running
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

QUESTION = [{"role": "user", "content": "Name the capital of France."}]
#: The smallest room: every change of adapter evicts the one before.
ROOM = {"max_adapters": 1, "max_rank": 8, "max_cpu_adapters": 1}
#: Seconds in which new settings have reached the directory, the engine and the gateway: the first of them starts anew.
RESETTLED_S = 120.0
#: Clients that call while adapters come and go.
CALLERS = 3
#: What vLLM says when it has read an adapter; one it still has is not read.
READ = re.compile(r"Adding lora\. Model id: (\d+)")


def environment(adapters: Sequence[AdapterSettings]) -> dict[str, str]:
    model = {"name": SMOLLM2, "lora": ROOM, "adapters": [adapter.model_dump() for adapter in adapters]}
    return {
        "SERVING_MODELS": json.dumps([model]),
        "SERVING_GATEWAY__ALIASES": '{"poet": "first"}',
        "VLLM_LOGGING_LEVEL": "DEBUG",  # what it reads is told
    }


def said(client: openai.OpenAI, model: str) -> str:
    """The likeliest answer; it must call itself what was asked for."""
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=16)
    assert answer.model in (model, "first")
    return str(answer.choices[0].message.content)


def loaded(stack: Stack) -> set[str]:
    """The adapters that the engine itself lists."""
    request = urllib.request.Request(f"{stack.ready_engine_url()}/v1/models", headers=bearer(stack.secret))
    with urllib.request.urlopen(request, timeout=10) as answer:
        return {card["id"] for card in json.load(answer)["data"]} - {SMOLLM2}


def offered(stack: Stack) -> set[str]:
    """The adapters that the directory names; none before it has heard of the engine."""
    return {name for it in stack.listed() if it.report.state is ReplicaState.READY for name in it.report.adapters}


def reads(stack: Stack) -> list[str]:
    """vLLM's numbers of the adapters it has read, in order."""
    (log,) = (stack.home / "logs").glob("engine-*.log")
    return READ.findall(log.read_text())


def pids(stack: Stack) -> dict[str, int]:
    return {name: process.pid for name, process in stack.engine_members().items()}


def is_unknown(client: openai.OpenAI, model: str) -> bool:
    try:
        said(client, model)
    except openai.NotFoundError as error:
        return bool(error.code == "model_not_found")
    return False


def test_adapters_come_and_go_while_their_engine_stays(tmp_path: Path) -> None:
    """From the registry to the answer and back, each step seen by the official client and in the engine."""
    folder = tmp_path / "adapters"
    names = ("first", "second", "third", "fourth")
    first, second, third, fourth = (peft.write(folder / name, seed) for seed, name in enumerate(names))
    narrow, stranger = peft.write(folder / "narrow", 7, narrower_by=64), peft.write(folder / "stranger", 8)
    feeble, empty = peft.write(folder / "feeble", 9, deviation=1e-18), peft.write(folder / "empty", 9, deviation=0)
    peft.rename(folder / "stranger", lambda name: name.replace(".model.layers.", ".language_model.model.layers."))
    with (
        running(tmp_path / "home", SMOLLM2, environment((first, second))) as stack,
        openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0) as client,
    ):
        before = pids(stack)
        _are_listed(client)
        plain = said(client, SMOLLM2)
        assert "Paris" in plain and loaded(stack) == set()

        _are_loaded_on_demand(stack, client, plain)
        _evict_each_other(stack, client)
        _answer_on_every_route(stack)
        _are_loaded_by_nothing_else(stack, folder / "third")
        _are_billed_by_name(stack, client)

        kept = said(client, "second")
        stack.resettle(environment((second, narrow, stranger, feeble, empty, third)))
        # Without a call: beside others rounding alone may differ, and an adapter that changes nothing passes.
        until(lambda: offered(stack) == {"second", "empty", "third"}, RESETTLED_S)
        until(lambda: is_unknown(client, "first"), RESETTLED_S)
        assert is_unknown(client, "poet") and loaded(stack) == {"second"}
        assert said(client, SMOLLM2) == plain and said(client, "second") == kept
        assert len({plain, kept, said(client, "third")}) == 3
        assert [name for name in ("narrow", "stranger", "feeble") if not is_unknown(client, name)] == []
        assert said(client, "empty") == plain, "it changes nothing, and its weights say so"
        with ThreadPoolExecutor() as pool:
            is_settled = threading.Event()
            calls = [pool.submit(_call_until, is_settled, client) for _ in range(CALLERS)]
            try:
                stack.resettle(environment((second, third, fourth)))
                until(lambda: not is_unknown(client, "fourth"), RESETTLED_S)
            finally:
                is_settled.set()
        assert min(it.result() for it in calls), "a new adapter is proven beside calls, of which none fails"
        assert pids(stack) == before


def _call_until(is_settled: threading.Event, client: openai.OpenAI) -> int:
    """Calls that were answered until then, of the model and of an adapter that stays."""
    count = 0
    while not is_settled.is_set():
        said(client, SMOLLM2 if count % 2 else "second")
        count += 1
    return count


def _are_listed(client: openai.OpenAI) -> None:
    cards = {card.id: card.parent for card in client.models.list()}
    assert cards == {SMOLLM2: None, "first": SMOLLM2, "second": SMOLLM2, "poet": SMOLLM2}
    assert client.models.retrieve("second").id == "second"


def _are_loaded_on_demand(stack: Stack, client: openai.OpenAI, plain: str) -> None:
    first = said(client, "first")
    assert loaded(stack) == {"first"}
    second = said(client, "second")
    assert loaded(stack) == {"first", "second"}
    assert len({plain, first, second}) == 3
    assert said(client, SMOLLM2) == plain and said(client, "poet") == first


def _evict_each_other(stack: Stack, client: openai.OpenAI) -> None:
    answers = {name: said(client, name) for name in ("first", "second")}
    before = len(reads(stack))
    for name in ("first", "second") * 3:
        assert said(client, name) == answers[name]
    turns = reads(stack)[before:]
    assert len(turns) == 6 and all(one != other for one, other in pairwise(turns))


def _answer_on_every_route(stack: Stack) -> None:
    bodies: dict[str, dict[str, object]] = {
        "/v1/completions": {"prompt": "Once", "max_tokens": 4},
        "/v1/responses": {"input": "Hello", "max_output_tokens": 4},
        "/v1/messages": {"messages": QUESTION, "max_tokens": 4},
        "/v1/messages/count_tokens": {"messages": QUESTION},
        "/tokenize": {"prompt": "Once"},
    }
    for path, body in bodies.items():
        status, _, answer = call(stack.url, "POST", path, body | {"model": "second"}, bearer(stack.key))
        assert status == 200 and json.loads(answer).get("model", "second") == "second", (path, answer)


def _are_loaded_by_nothing_else(stack: Stack, path: Path) -> None:
    """The routes by which vLLM would load any folder are closed, even to who has the secret."""
    for route, body in (
        ("/v1/load_lora_adapter", {"lora_name": "third", "lora_path": str(path)}),
        ("/adapters", {"name": "third", "src": str(path)}),
    ):
        assert call(stack.ready_engine_url(), "POST", route, body, bearer(stack.secret))[0] == 404
    question = {"model": str(path), "prompt": "Once", "max_tokens": 1}
    for url, key in ((stack.ready_engine_url(), stack.secret), (stack.url, stack.key)):
        assert call(url, "POST", "/v1/completions", question, bearer(key))[0] == 404


def _are_billed_by_name(stack: Stack, client: openai.OpenAI) -> None:
    stream = client.chat.completions.with_raw_response.create(
        model="poet", messages=QUESTION, temperature=0, max_tokens=16, stream=True
    )
    request_id = stream.headers["x-request-id"]
    assert {chunk.model for chunk in stream.parse()} == {"first"}
    row = stack.row(request_id)
    assert (row.model, row.outcome, row.estimated_by) == ("first", "ok", None) and row.completion_tokens
    with urllib.request.urlopen(f"{stack.url}/metrics", timeout=10) as answer:
        assert 'serving_gateway_tokens_total{kind="completion",model="first"}' in answer.read().decode()
