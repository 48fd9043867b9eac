"""The ledger equals the engine: a hundred calls of every API on a real one, and then calls whose clients leave."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from serving.gateway.ledger.balance import Verdict
from tests.long.leaving import answering
from tests.long.pair import Pair
from tests.long.test_continuation import CHAT, Countdown
from tests.stack.conftest import SMOLLM2, TINY
from tests.stack.http import bearer, call
from tests.stack.running import Stack, running
from tests.waiting import until

#: Streams over two engines, and events of all of them after which one is killed.
STREAMS = 8
KILLED_AFTER_EVENTS = 150

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

CALLS = 100
AT_A_TIME = 4
LEAVERS = 6
#: Tokens that an engine makes of one call before it learns that the call is over.
AHEAD_TOKENS = 16
TOPICS = ("the sea", "a lamp", "old maps", "trains", "bread", "rain", "a fox", "numbers", "glass", "the moon")


def bodies(model: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Calls of every API that has tokens or counts them, whole and streamed, with what changes how an engine counts."""
    for number in range(CALLS):
        topic, stream = f"{TOPICS[number % len(TOPICS)]} ({number // len(TOPICS)})", number % 2 == 0
        messages = [{"role": "user", "content": f"Tell me about {topic}."}]
        kinds: list[tuple[str, dict[str, object]]] = [
            ("/v1/chat/completions", {"messages": messages, "max_tokens": 12 + number % 7, "stream": stream}),
            ("/v1/completions", {"prompt": f"About {topic}:", "max_tokens": 9, "stream": stream}),
            ("/v1/responses", {"input": f"Tell me about {topic}.", "max_output_tokens": 17, "stream": stream}),
            ("/v1/messages", {"messages": messages, "max_tokens": 11, "stream": stream}),
            (
                "/v1/chat/completions",
                {"messages": messages, "max_tokens": 8, "n": 3, "temperature": 0.8, "stream": stream},
            ),
            ("/v1/chat/completions", {"messages": messages, "max_tokens": 40, "stop": ["@@"], "stream": stream}),
            ("/v1/completions", {"prompt": [f"About {topic}:", "Once"], "n": 2, "temperature": 1, "max_tokens": 5}),
            ("/v1/messages/count_tokens", {"messages": messages}),
            ("/tokenize", {"prompt": f"About {topic}"}),
        ]
        route, body = kinds[(number // 2) % len(kinds)]
        yield route, {"model": model, **body}


@pytest.fixture(scope="module", params=[SMOLLM2, TINY])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose engine has answered its replica's questions, and no client's."""
    with running(tmp_path_factory.mktemp(request.param), request.param) as it:
        yield it


def test_an_engine_that_no_client_has_asked_has_counted_its_replicas_questions(stack: Stack) -> None:
    """The first token and the known text: exactly those."""
    found = stack.ledger_check()
    assert found["counted"]["own"]["prompt_tokens"] > 0 and found["counted"]["own"]["generation_tokens"] > 0
    assert found["verdict"] == Verdict.EQUAL and found["billed"]["completed_requests"] == 0, found


def test_completed_calls_are_what_the_engine_counted(stack: Stack) -> None:
    """A hundred of them, of every API: not one token is left."""
    with ThreadPoolExecutor(AT_A_TIME) as clients:
        answers = clients.map(lambda it: call(stack.url, "POST", it[0], it[1], bearer(stack.key)), bodies(stack.model))
        assert [(status, body) for status, _, body in answers if status != 200] == []
    found = stack.ledger_check()
    assert found["verdict"] == Verdict.EQUAL and found["left"] == {"prompt_tokens": 0, "generation_tokens": 0}, found
    assert found["billed"]["completed_requests"] == CALLS and found["billed"]["suspects"] == 0


def test_what_is_left_is_of_calls_that_were_cut(stack: Stack) -> None:
    """By their clients, or by a stop string. Each is named; they cost no less than they are billed for, and the other calls agree."""
    before = stack.ledger_check()["billed"]["completed"]
    chat: dict[str, object] = {"model": stack.model, "messages": [{"role": "user", "content": "Tell me a long story."}]}
    for number in range(LEAVERS):
        long = chat | {"stream": True, "max_tokens": 900}
        with answering(stack.url, "/v1/chat/completions", long, stack.key) as stream:
            list(islice(stream, 6 + 2 * number))
        stopped = chat | {"max_tokens": 60, "stop": ["e", " "]}
        assert call(stack.url, "POST", "/v1/chat/completions", stopped, bearer(stack.key))[0] == 200
    call(stack.url, "POST", *next(bodies(stack.model)), bearer(stack.key))
    found = stack.ledger_check()
    left, billed = found["left"], found["billed"]
    named = billed["named"]
    assert {it["why"] for it in named} == {"cut_or_estimated", "stopped_here"}, found
    # Fewer than all, where an answer was over before its client left.
    assert LEAVERS < billed["suspects"] == len(named) <= 2 * LEAVERS and found["verdict"] == Verdict.EXPLAINED
    assert left["prompt_tokens"] == sum(it["billed"]["prompt_tokens"] for it in named)
    made = sum(it["billed"]["generation_tokens"] for it in named)
    assert made <= left["generation_tokens"] <= made + AHEAD_TOKENS * len(named)
    assert billed["completed"]["prompt_tokens"] > before["prompt_tokens"]


def test_an_engine_that_took_streams_over_agrees_but_for_those(tmp_path: Path) -> None:
    """One of two is killed in the middle of streams, which go on at the other: each is named there, and all others agree."""
    pair = Pair(tmp_path, SMOLLM2)
    long = {"messages": [{"role": "user", "content": "Tell me a long story about a fox."}], "max_tokens": 96}
    come = Countdown(KILLED_AFTER_EVENTS)
    with pair.running({"SERVING_GATEWAY__RETRIES__SHARE": "1"}), ThreadPoolExecutor(STREAMS) as clients:
        streams = [clients.submit(pair.stream, CHAT, long, [], come.count) for _ in range(STREAMS)]
        assert come.over.wait(120)
        pair.engines[0].kill()
        request_ids = [stream.result() for stream in streams]
        outcomes = {it[0] for it in pair.billed(request_ids).values()}
        (found,) = pair.ledger_check(pair.cutters[1].url)
        # The log is written a moment later than the ledger.
        retried = until(lambda: len(it := pair.retried()) == found["billed"]["suspects"] and it)
    named = found["billed"]["named"]
    assert outcomes == {"ok"} and retried and found["verdict"] == Verdict.EXPLAINED, found
    assert {it["request_id"] for it in named} == retried
    assert {it["why"] for it in named} <= {"continued", "attempts_failed"}
    assert found["billed"]["completed_requests"] == STREAMS - len(retried)
    # What they had was prompt once more; what came here is a part of what they are billed for.
    assert found["left"]["prompt_tokens"] >= sum(it["billed"]["prompt_tokens"] for it in named)
    assert 0 < found["left"]["generation_tokens"] <= sum(it["billed"]["generation_tokens"] for it in named)
