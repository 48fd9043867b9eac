"""Streams go on when their engine is killed: two real engines, one of them killed (-9) in the middle of several answers, again
and again; and many more streams whose connection to it is cut at a random byte. Greedy answers must be those of an undisturbed
run; sampled ones must be whole.

`ENGINE_KILLS` and `STREAM_CUTS` say how many engines are killed, and how many streams are cut, of each model (4 and 100 by
default). The engines are forks of a process that has imported vLLM (`nursery`), so that a kill costs seconds.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving.engine.checkpoints import bodies
from serving.engine.checkpoints.conversations import REASONED, STRUCTURED, TOOL_CALLED
from tests.long.pair import Engine, Events, Pair
from tests.stack.conftest import SMOLLM2, TINY

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("ENGINE_KILLS", "4"))
CUTS = int(os.environ.get("STREAM_CUTS", "100"))
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
#: What each model is asked: plain text; Harmony's analysis, tool calls and final answers, and one under a grammar.
ASKED: dict[str, list[tuple[str, dict[str, Any]]]] = {
    SMOLLM2: list(LONG.items()),
    TINY: [
        (CHAT, bodies.chat_body(REASONED, TINY)),
        (CHAT, bodies.chat_body(TOOL_CALLED, TINY)),
        (RESPONSES, bodies.responses_body(REASONED, TINY)),
        (RESPONSES, bodies.responses_body(TOOL_CALLED, TINY)),
        (MESSAGES, bodies.messages_body(REASONED, TINY)),
        (MESSAGES, bodies.messages_body(TOOL_CALLED, TINY)),
        (CHAT, bodies.chat_body(STRUCTURED, TINY)),
    ],
}


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


def texts(events: Events) -> list[tuple[str, str]]:
    """All that an answer says: what is said in pieces is joined, because under load an event has several tokens. One that has the end of
    the reasoning and the beginning of the text spells the text first.
    """
    said: list[tuple[str, str]] = []

    def walk(value: Any, name: str = "") -> None:
        if isinstance(value, dict):
            for key, below in sorted(value.items(), key=lambda it: it[0] != "reasoning"):
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


def is_whole(events: Events) -> bool:
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


#: Where a stream stands, by the part of an answer that it said last.
PLACES = {
    "reasoning": "in analysis",
    "thinking": "in analysis",
    "reasoning_text": "in analysis",
    "arguments": "in a tool call",
    "function_call_arguments": "in a tool call",
    "partial_json": "in a tool call",
    "content": "in the final text",
    "output_text": "in the final text",
    "text": "in the final text",
}


def place(events: Events) -> str:
    """Where a stream was that had come so far."""
    for event in reversed(events):
        if (kind := event.get("type", "")).endswith(".delta") and kind.startswith("response."):
            return PLACES.get(kind.split(".")[1], "elsewhere")
        said = texts([event])
        if found := [PLACES[name] for name, _ in said if name in PLACES]:
            return found[-1]
    return "before its first text"


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


class Asked(msgspec.Struct):
    """One stream of a round."""

    number: int
    is_greedy: bool
    request_id: str = ""
    events: Events = []
    #: Its events when an engine was killed.
    had: int = 0


class Rounds:
    """Rounds of streams on two engines, whose connections are cut or one of whose engines is killed, and what became of them."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._asked = ASKED[pair.model]
        self._drawn = random.Random(7)
        self._rounds = 0
        self.table: Counter[str] = Counter()
        #: Where streams were that lost their engine to a kill.
        self.seams: Counter[str] = Counter()
        plain = [Asked(number, True) for number in range(len(self._asked))]
        for one in plain:
            self._run(one, lambda: None)
        self._plain = [texts(one.events) for one in plain]
        billed = pair.billed([one.request_id for one in plain])
        self._billed = [billed[one.request_id] for one in plain]
        self._events = max(len(one.events) for one in plain)

    def _run(self, one: Asked, seen: Callable[[], None]) -> None:
        path, body = self._asked[one.number]
        temperature = 0.0 if one.is_greedy else 0.8
        one.request_id = self._pair.stream(path, body | {"temperature": temperature}, one.events, seen)

    @contextmanager
    def _round(self, seen: Callable[[], None]) -> Iterator[list[Asked]]:
        """Streams run inside, and are over afterwards."""
        numbers = [(self._rounds + number) % len(self._asked) for number in range(STREAMS)]
        streams = [Asked(number, place < GREEDY) for place, number in enumerate(numbers)]
        self._rounds += 1
        with ThreadPoolExecutor(STREAMS) as pool:
            running = [pool.submit(self._run, one, seen) for one in streams]
            yield streams
            for stream in running:
                stream.result()
        billed = self._pair.billed([one.request_id for one in streams])
        for one in streams:
            self._judge(one, billed[one.request_id])

    def cut(self) -> None:
        """One round of streams whose connections are cut."""
        with self._round(lambda: None):
            pass

    def kill(self, engine: Engine) -> None:
        """One round; the engine is back at its end."""
        countdown = Countdown(self._drawn.randrange(STREAMS, STREAMS * self._events * 3 // 4))
        with self._round(countdown.count) as streams:
            countdown.over.wait(30)
            for one in streams:
                one.had = len(one.events)
            engine.kill()
            engine.start(self._pair.nursery)
        retried = self._pair.retried()
        self.seams.update(place(one.events[: one.had]) for one in streams if one.request_id in retried)
        engine.until_ready()
        self._pair.until_both_ready()

    def _judge(self, one: Asked, billed: tuple[object, ...]) -> None:
        self.table["streams"] += 1
        plain, said = self._plain[one.number], texts(one.events)
        if not is_whole(one.events):
            self.table["failed"] += 1
            print("FAILED", self._asked[one.number][0], one.events[-3:])
        elif not one.is_greedy:
            self.table["sampled, whole"] += 1
        elif said != plain:
            self.table["greedy, otherwise"] += 1
            print("WAS", plain, "IS", said)
        elif billed != self._billed[one.number]:
            self.table["billed otherwise"] += 1
            print("BILLED", billed, self._billed[one.number])
        else:
            self.table["greedy, as undisturbed, billed alike"] += 1


@pytest.mark.parametrize("model", [SMOLLM2, TINY])
def test_streams_survive_the_kills_of_their_engines(tmp_path: Path, model: str) -> None:
    """None fails; greedy ones say what they say undisturbed (near ties may turn, and are counted), billed once and exactly."""
    pair = Pair(tmp_path, model)
    # More streams lose their engine here than in any fleet: retries must not run out, and neither of the two be ejected for it.
    settings = {"SERVING_GATEWAY__RETRIES__SHARE": "1", "SERVING_GATEWAY__OUTLIERS__EJECTED_SHARE_MAX": "0"}
    with pair.running(settings):
        rounds, went_on = Rounds(pair), 0
        for cutter in pair.cutters:
            cutter.is_cutting = True
        while went_on < CUTS:
            rounds.cut()
            went_on = int(pair.metric("serving_gateway_continuations_total"))
        for cutter in pair.cutters:
            cutter.is_cutting = False
        print(f"{model}: {went_on} cut streams went on, {dict(rounds.table)}", flush=True)
        for kill in range(KILLS):
            rounds.kill(pair.engines[kill % 2])
            went_on = int(pair.metric("serving_gateway_continuations_total"))
            print(f"{model}: {kill + 1} kills, {went_on} streams went on, {dict(rounds.table)}", flush=True)
        print(f"{model}: killed {dict(rounds.seams)}", flush=True)
    table = rounds.table
    assert went_on >= CUTS + KILLS and not table["failed"] and not table["billed otherwise"]
    assert table["greedy, otherwise"] <= table["greedy, as undisturbed, billed alike"] / 20
