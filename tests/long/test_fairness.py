"""Fairness on a real engine with few places: what a flood costs others, and what weights give."""

from __future__ import annotations

import http.client
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.policies import Policy
from serving.gateway.store.store import Store
from tests.long.narrow_vllm import PLACES
from tests.stack.conftest import SMOLLM2
from tests.stack.http import bearer
from tests.stack.running import Stack, running

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

NARROW = {"SERVING_ENGINE__PROGRAM": json.dumps([sys.executable, str(Path(__file__).with_name("narrow_vllm.py"))])}
#: Of each answer.
TOKENS = 16
#: Streams of the small tenant in each measurement, and how long weights are watched, in seconds.
STREAMS = 12
WATCHED_S = 120.0
#: What other work on two cores may add to a ratio of two medians.
NOISE = 1.3


def stream(stack: Stack, key: str) -> float:
    """Seconds to the first token of one stream, which is read to its end."""
    parts = urlsplit(stack.url)
    body = {"model": SMOLLM2, "prompt": "Once upon a time", "max_tokens": TOKENS, "min_tokens": TOKENS, "stream": True}
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=600)
    began = time.monotonic()
    try:
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"} | bearer(key)
        )
        answer = connection.getresponse()
        while not (line := answer.readline()).startswith(b"data: "):
            assert line, answer.status
        first_s = time.monotonic() - began
        assert b'"finish_reason":"length"' in answer.read()
        return first_s
    finally:
        connection.close()


@contextmanager
def flood(stack: Stack, key: str, callers: int) -> Iterator[list[float]]:
    """So many callers of one tenant, each of whom asks again at once; the TTFT of each stream they have had."""
    is_over = threading.Event()
    had: list[float] = []

    def call() -> None:
        while not is_over.is_set():
            had.append(stream(stack, key))

    with ThreadPoolExecutor(callers) as pool:
        tasks = [pool.submit(call) for _ in range(callers)]
        try:
            yield had
        finally:
            is_over.set()
            for task in tasks:
                task.result()


def keys(stack: Stack, **weights: float) -> list[str]:
    """A key of a new tenant for each."""
    with Store.open(stack.home) as store:
        registry = Registry(store, Keyring.open(store), time.time)
        made = []
        for tenant, weight in weights.items():
            registry.create_tenant(tenant, Policy(weight=weight))
            made.append(registry.create_key(tenant))
    return made


def ttft_s(stack: Stack, key: str) -> list[float]:
    """Of one stream after the other, with a pause."""
    taken = []
    for _ in range(STREAMS):
        taken.append(stream(stack, key))
        time.sleep(0.2)
    return taken


def test_a_flood_costs_what_a_neighbour_costs_and_weights_share_tokens(tmp_path: Path) -> None:
    """A tenant's streams begin beside ten times the callers as beside as many as keep the engine full: within 1.3 times, and what a busy
    machine with two cores adds; while those wait for seconds. Weights 1:3 get tokens 1:3.
    """
    with running(tmp_path, SMOLLM2, NARROW) as stack:
        small, large, one, three = keys(stack, small=1, large=1, one=1, three=3)
        stream(stack, small)
        alone = ttft_s(stack, small)
        with flood(stack, large, 2 * PLACES):
            time.sleep(5)
            filled = ttft_s(stack, small)
        with flood(stack, large, 10 * PLACES) as waited:
            time.sleep(5)
            flooded = ttft_s(stack, small)
        with flood(stack, one, 3 * PLACES) as ones, flood(stack, three, 3 * PLACES) as threes:
            time.sleep(15)
            before = len(ones), len(threes)
            time.sleep(WATCHED_S)
            after = len(ones), len(threes)
    shares = [now - then for now, then in zip(after, before, strict=True)]
    medians = {"alone": alone, "filled": filled, "flooded": flooded}
    middle = {name: statistics.median(taken) for name, taken in medians.items()}
    print(f"median TTFT {middle}; the flood's {statistics.median(waited):.2f}; streams of weights 1 and 3: {shares}")
    assert middle["flooded"] <= 1.3 * NOISE * middle["filled"]
    assert middle["flooded"] < statistics.median(waited) / 2
    assert shares[1] / shares[0] == pytest.approx(3, rel=0.25)
