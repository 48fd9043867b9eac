"""Wedged engines: a process that is stopped while everything answers is noticed, its engine ended and replaced. Hard work is none."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest

from serving.catalog import MODELS, MountedSource
from serving.engine import processes
from serving.engine.checkpoints import store as checkpoints
from serving.engine.figures import RUNNING_METRIC
from serving.wire import WEDGED, ReplicaReport, ReplicaState
from tests.stack.conftest import SMOLLM2, TINY
from tests.stack.running import CACHE, Stack, running
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

QUESTION = [{"role": "user", "content": "Tell me a very long story."}]

#: Seconds of as much work as the engine takes, in as many streams.
SATURATED_S = 600.0
STREAMS = 32
#: Tokens of the long prompt, and seconds that it may take on two cores.
LONG = 100_000
PATIENCE_S = 2400.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    # With it a stream waits for the new engine, and goes on there if that is ready within half a minute.
    with running(tmp_path_factory.mktemp("wedge"), SMOLLM2, {"SERVING_GATEWAY__CONTINUATION": "false"}) as it:
        yield it


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0) as it:
        yield it


@pytest.mark.parametrize("victim", ["EngineCore", "Worker", "server"])
def test_a_stopped_engine_is_ended_and_replaced(stack: Stack, client: openai.OpenAI, victim: str) -> None:
    """Its stream ends in an error, the reason is told, and another engine answers; no process of it is left."""
    engine = {name: it for name, it in stack.engine_members().items() if name not in ("replica", "directory")}
    errors: list[openai.APIError] = []
    reader = threading.Thread(target=_read_at_length, args=(client, errors))
    reader.start()
    until(lambda: stack.engine_metrics()[RUNNING_METRIC] > 0, 60)

    engine[victim].send_signal(signal.SIGSTOP)

    failed = until(lambda: _failed(stack), 120)
    assert failed and failed.ejected == WEDGED
    assert failed.reason == f"its {victim} process is stopped"
    reader.join(120)
    assert len(errors) == 1
    until(lambda: not any(processes.is_alive(it) for it in engine.values()), 60)
    until(lambda: _is_replaced(stack, engine["server"]), 600, 0.5)
    assert any("was taken out: its" in warning for warning in stack.directory().warnings)
    said = client.with_options(max_retries=5).chat.completions.create(model=SMOLLM2, messages=QUESTION, max_tokens=4)
    assert said.choices[0].message.content


def _read_at_length(client: openai.OpenAI, errors: list[openai.APIError]) -> None:
    try:
        list(
            client.chat.completions.create(
                model=SMOLLM2, messages=QUESTION, max_tokens=3500, stream=True, extra_body={"min_tokens": 3400}
            )
        )
    except openai.APIError as error:
        errors.append(error)


def _failed(stack: Stack) -> ReplicaReport | None:
    found = [it.report for it in stack.listed() if it.report.state is ReplicaState.FAILED]
    return found[0] if found else None


def _is_replaced(stack: Stack, old: psutil.Process) -> bool:
    return stack.engine_members().get("server") not in (None, old) and bool(stack.ready())


@pytest.mark.timeout(4000)
def test_hard_work_is_no_wedge(tmp_path: Path) -> None:
    """A prompt of 100,000 tokens, and then ten minutes of more streams than the cores can serve: nothing is ended."""
    with running(tmp_path, "far", far_sighted_tiny()) as stack:
        before = stack.engine_members()["server"]
        url, key = f"{stack.url}/v1", stack.key
        with (
            openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=PATIENCE_S) as client,
            ThreadPoolExecutor(STREAMS) as pool,
        ):
            answer = client.completions.create(model="far", prompt="sea " * LONG, max_tokens=1)
            until_s = time.monotonic() + SATURATED_S
            counts = list(pool.map(lambda _: _read_until(client, until_s), range(STREAMS)))
        assert answer.usage and answer.usage.prompt_tokens > LONG
        assert min(counts) > 0
        assert stack.engine_members()["server"] == before
        assert stack.directory().warnings == ()


def far_sighted_tiny() -> dict[str, str]:
    """tiny-gpt-oss with the context of its large relatives."""
    folder = checkpoints.ensure(MODELS[TINY], CACHE, print)
    far = MODELS[TINY].model_copy(
        update={
            "name": "far",
            "source": MountedSource(path=str(folder)),
            "context_tokens": 131_072,
        }
    )
    described = far.model_dump(mode="json", exclude_none=True)
    return {
        "SERVING_OWN_MODELS": json.dumps([described]),
        "SERVING_MODELS": json.dumps([{"name": "far"}]),
        # A prompt that takes longer than clients wait for is no wedge either.
        "SERVING_GATEWAY__TIMEOUTS__ENGINE_SILENCE_S": str(PATIENCE_S),
        "SERVING_GATEWAY__TIMEOUTS__REQUEST_TOTAL_S": str(PATIENCE_S),
    }


def _read_until(client: openai.OpenAI, until_s: float) -> int:
    """Streams that were read to their ends until then; raises what one of them ends in."""
    count = 0
    while time.monotonic() < until_s:
        list(
            client.chat.completions.create(
                model="far", messages=QUESTION, max_tokens=200, stream=True, extra_body={"min_tokens": 200}
            )
        )
        count += 1
    return count
