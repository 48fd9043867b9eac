"""Whatever dies, nobody is left over, a healthy replacement comes, and no request is lost that need not be.

The kills run last in this folder (see conftest), because each costs an engine start.
"""

import threading

import openai
import psutil
import pytest

from serving.engine import processes
from serving.wire import ReplicaState
from tests.stack.conftest import SMOLLM2
from tests.stack.running import Stack
from tests.stack.traces import holding
from tests.waiting import until

QUESTION = [{"role": "user", "content": "Name the capital of France."}]


def ask(client: openai.OpenAI) -> str:
    answer = client.chat.completions.create(model=SMOLLM2, messages=QUESTION, temperature=0, max_tokens=16)
    return answer.choices[0].message.content or ""


def test_killing_the_directory_under_load_fails_no_request(stack: Stack, client: openai.OpenAI) -> None:
    """The directory is killed and comes back empty; gateways keep what they know, and every request is answered."""
    answers: list[str] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(ask(client))

    askers = [threading.Thread(target=keep_asking) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        before = stack.engine_members()["directory"]
        before.kill()
        until(lambda: stack.engine_members().get("directory") not in (None, before), 60)
        until(lambda: _is_listed_ready(stack), 60)
        count = len(answers)
        until(lambda: len(answers) > count + 4, 60)
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    assert all("Paris" in answer for answer in answers)


#: Each costs an engine start; a scripted tree loses every one of its members in tests/engine/test_supervisor.py.
SLOW = [pytest.param(name, marks=pytest.mark.long) for name in ("replica", "supervisor", "EngineCore", "Worker")]


@pytest.mark.parametrize("victim", ["server", *SLOW])
def test_killing_any_member_leaves_nobody_and_brings_a_replacement(
    stack: Stack, client: openai.OpenAI, victim: str
) -> None:
    """kill -9 of the replica, the supervisor, vLLM's API server, its EngineCore or a worker: no survivor, then health."""
    before = stack.engine_members()
    canary = f"canary-{victim}-5d1e"
    cut_short = threading.Thread(target=_ask_at_length, args=(client, canary))
    cut_short.start()
    until(lambda: stack.engine_metrics()["vllm:num_requests_running"] > 0)
    engine = [before[name] for name in ("supervisor", "server", "EngineCore", "Worker")]
    before[victim].kill()
    until(lambda: not any(processes.is_alive(process) for process in engine), 15)
    until(lambda: _has_new_engine(stack, before["server"]), 180, 0.5)
    assert "Paris" in _ask_when_ready(client)
    cut_short.join()
    assert holding(stack, canary) == [], "a crash wrote down what was asked"
    assert [process for process in stack.members() if processes.role(process) == "EngineCore"] == [
        stack.engine_members()["EngineCore"]
    ]


def _is_listed_ready(stack: Stack) -> bool:
    try:
        return any(listed.report.state is ReplicaState.READY for listed in stack.listed())
    except OSError:
        return False


def _has_new_engine(stack: Stack, old: psutil.Process) -> bool:
    return stack.engine_members().get("server") not in (None, old) and _is_listed_ready(stack)


def _ask_at_length(client: openai.OpenAI, canary: str) -> None:
    """A stream that the kill will cut: it must end in an error that says so, not hang and not look complete."""
    chunks = client.chat.completions.create(
        model=SMOLLM2,
        messages=[{"role": "user", "content": f"Repeat for ever: {canary}"}],
        max_tokens=3000,
        stream=True,
        extra_body={"min_tokens": 2900},
    )
    with pytest.raises(openai.APIError):
        list(chunks)


def _ask_when_ready(client: openai.OpenAI) -> str:
    """The client retries by itself what says 503 with Retry-After, as it does while the only engine is replaced."""
    return ask(client.with_options(max_retries=5))
