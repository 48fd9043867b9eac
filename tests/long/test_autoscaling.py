"""The fleet follows the demand on the real stack: from none to one, to two, and back, and no request fails."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import openai
import pytest

from serving.wire import ASLEEP
from tests.stack.conftest import SMOLLM2
from tests.stack.http import call
from tests.stack.running import Stack, running
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

#: Less than an engine can do, so that a handful of requests needs two; a short start-up, so that peaks are soon forgotten.
FLEET = {
    "name": SMOLLM2,
    "min_replicas": 0,
    "max_replicas": 2,
    "sleep_after_s": 15,
    "knee": {
        "running_requests": 4,
        "prefill_tokens_per_s": 1000,
        "decode_tokens_per_s": 100,
        "startup_s": 15,
        "ttft_slo_s": 10,
    },
}
ASKERS = 6
QUESTION = [{"role": "user", "content": "Name the capital of France."}]
#: Output tokens of a stream that runs longer than a fleet takes to shrink: 52 s on two quiet cores against 22 (measured).
LONG = 2000


def ask(client: openai.OpenAI) -> str:
    answer = client.chat.completions.create(model=SMOLLM2, messages=QUESTION, temperature=0, max_tokens=48)
    return answer.choices[0].message.content or ""


def finish_reason_of_a_long_stream(client: openai.OpenAI, finished: list[str | None]) -> None:
    stream = client.chat.completions.create(
        model=SMOLLM2,
        messages=QUESTION,
        max_tokens=LONG,
        stream=True,
        extra_body={"min_tokens": LONG},
    )
    reason = None
    for chunk in stream:
        if chunk.choices:
            reason = chunk.choices[0].finish_reason or reason
    finished.append(reason)


@contextmanager
def load(client: openai.OpenAI, answers: list[str]) -> Iterator[None]:
    """ASKERS clients that ask again at once, as long as the `with` lasts."""
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(ask(client))

    askers = [threading.Thread(target=keep_asking) for _ in range(ASKERS)]
    for asker in askers:
        asker.start()
    try:
        yield
    finally:
        stop.set()
        for asker in askers:
            asker.join()


def wanted_so_far(stack: Stack) -> list[int]:
    """How many engines were wanted, one after the other, as the gateway's log has it."""
    told = re.findall(r"wants (\d+) engines", (stack.home / "logs" / "gateway.log").read_text())
    return [int(count) for count, _ in groupby(told)]


def known_to_gateway(stack: Stack) -> int:
    """Ready engines that the gateway has heard of."""
    _, _, body = call(stack.url, "GET", "/metrics")
    found = re.search(rf'serving_gateway_replicas{{model="{SMOLLM2}",state="ready"}} (\d+)', body.decode())
    return int(found[1]) if found else 0


def state(stack: Stack) -> str:
    """What the gateway says of the model."""
    _, _, body = call(stack.url, "GET", "/health/models")
    told: str = json.loads(body)["models"][SMOLLM2]
    return told


def test_the_fleet_follows_the_demand(tmp_path: Path) -> None:
    """0 → 1 with the directory killed meanwhile, 1 → 2 under load, 2 → 1 → 0 after it; every request is answered."""
    with running(tmp_path, SMOLLM2, {"SERVING_MODELS": json.dumps([FLEET])}) as stack:
        client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0, timeout=590)
        assert state(stack) == ASLEEP and "replica" not in stack.engine_members()
        assert [model.id for model in client.models.list()] == [SMOLLM2]

        answers: list[str] = []
        first = threading.Thread(target=lambda: answers.append(ask(client)))
        first.start()
        until(lambda: "replica" in stack.engine_members(), 60)
        killed = stack.engine_members()["directory"]
        killed.kill()
        until(lambda: stack.engine_members().get("directory") not in (None, killed), 60)
        first.join()
        assert len(answers) == 1 and len(stack.ready()) == 1
        assert wanted_so_far(stack) == [0, 1]  # the call that waited is not counted once more when it is served

        finished: list[str | None] = []
        with load(client, answers):
            until(lambda: len(stack.ready()) == 2 and known_to_gateway(stack) == 2, 300, 0.5)
            both = stack.ready()
        # The router gives each idle engine one of them.
        streams = [threading.Thread(target=finish_reason_of_a_long_stream, args=(client, finished)) for _ in range(2)]
        for stream in streams:
            stream.start()
        # Two streams need no second engine: it goes, and what runs on it is finished first.
        until(lambda: len(stack.ready()) == 1, 300, 0.5)
        assert finished == []
        for stream in streams:
            stream.join()
        assert finished == ["length", "length"]
        until(lambda: {row.replica_id for row in stack.ledger() if row.completion_tokens == LONG} == both, 20, 0.2)
        until(lambda: state(stack) == ASLEEP and not stack.listed(), 120, 0.5)

        assert wanted_so_far(stack) == [0, 1, 2, 1, 0]
        assert len(answers) > ASKERS and all("Paris" in answer for answer in answers)
        served = {row.replica_id for row in stack.ledger() if row.outcome == "ok"}
        assert both <= served and all(row.outcome == "ok" for row in stack.ledger())
