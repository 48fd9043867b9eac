"""Callers: clients that ask a model for whole answers, short streams and long ones, each again as soon as it has the last."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests.stack.http import bearer

#: Tokens of each kind of answer, and whether it is streamed.
ASKED = {"whole": (24, False), "short stream": (24, True), "long stream": (800, True)}


class Failed(Exception):
    """A call that did not get all its tokens."""


def ask(url: str, key: str, model: str, tokens: int, is_streamed: bool) -> str:
    """The text of one answer, whole or streamed."""
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": tokens, "stream": is_streamed}
    body |= {"temperature": 0, "min_tokens": tokens}
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=600)
    try:
        headers = {"Content-Type": "application/json"} | bearer(key)
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        said = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Failed(repr(error)) from error
    finally:
        connection.close()
    if answer.status != 200 or b'"error"' in said or b'"finish_reason":"length"' not in said:
        raise Failed(f"{answer.status} {said[-300:]!r}")
    events = [line[6:] for line in said.splitlines() if line.startswith(b"data: {")] if is_streamed else [said]
    return "".join(choice["text"] for part in events for choice in json.loads(part)["choices"])


class Load:
    """Callers, each of whom asks for an answer as soon as it has the last."""

    def __init__(self, url: str, key: str, model: str) -> None:
        self._asked = url, key, model
        self._is_over = threading.Event()
        self.ended: Counter[str] = Counter()
        #: Answers that were not the first of their kind again: all are greedy, so only a near tie may make one.
        self.otherwise: Counter[str] = Counter()
        self.failures: list[str] = []

    def _call(self, kind: str) -> None:
        first = ask(*self._asked, *ASKED[kind])
        self.ended[kind] += 1
        while not self._is_over.is_set():
            try:
                self.otherwise[kind] += ask(*self._asked, *ASKED[kind]) != first
            except Failed as failed:
                self.failures.append(f"{kind}: {failed}")
            self.ended[kind] += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """All calls are over afterwards."""
        with ThreadPoolExecutor(len(ASKED)) as pool:
            callers: list[Future[None]] = [pool.submit(self._call, kind) for kind in ASKED]
            try:
                yield
            finally:
                self._is_over.set()
                for caller in callers:
                    caller.result()
