"""What `helm test` asks of an installation: `python check.py chat|stream|wrong-key|metrics`. Standard library only.

Environment: API (base URL), METRICS (host:port of the gateways' metrics), MODEL, KEY_FILE, TIMEOUT_S. Exit code 1 and one
sentence when something is not as it should be.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: Well formed, so that the store is asked.
NOBODYS_KEY = f"sk-nobodymade-{'x' * 43}"
QUESTION = "What is the capital of France?"
RETRY_S = 5.0
REQUESTS = "serving_gateway_requests_total"


class Failed(Exception):
    """The installation does not do what it should; the message is for its operator."""


def main() -> None:
    """Run the named check."""
    name = sys.argv[1]
    try:
        CHECKS[name]()
    except Failed as failed:
        sys.exit(f"{name}: {failed}")
    print(f"{name}: as it should be")


def chat() -> None:
    """A whole answer with a bill."""
    with _asked({"max_tokens": 64}) as answer:
        body = json.load(answer)
    if not body["choices"] or body["usage"]["completion_tokens"] < 1:
        raise Failed(f"the answer holds nothing: {body}")


def stream() -> None:
    """Events that come one by one and end as they should."""
    events = 0
    with _asked({"max_tokens": 64, "stream": True}) as answer:
        kind = answer.headers["content-type"]
        if not kind.startswith("text/event-stream"):
            raise Failed(f"a stream was asked for, and {kind} came")
        last = b""
        for data in _events(answer):
            events += 1
            last = data
            if b'"error"' in data and "error" in json.loads(data):
                raise Failed(f"the stream broke: {data.decode()}")
    if last != b"[DONE]" or events < 3:
        raise Failed(f"the stream ended after {events} events with {last.decode() or 'nothing'}")


def wrong_key() -> None:
    """No answer for a key that was never issued, nor without one."""
    for headers in ({"Authorization": f"Bearer {NOBODYS_KEY}"}, {}):
        try:
            _reached("/v1/models", headers).close()
        except urllib.error.HTTPError as refused:
            if refused.code != 401:
                raise Failed(f"expected 401 and got {refused.code}") from None
        else:
            raise Failed("a call without a valid key was answered")


def metrics() -> None:
    """Every gateway counts what it serves."""
    _reached("/v1/models", _key()).close()
    before = _counted()
    _open("/v1/models", _key()).close()
    after = _counted()
    if after <= before:
        raise Failed(f"{REQUESTS} stayed at {after} after a call")


CHECKS: dict[str, Callable[[], None]] = {"chat": chat, "stream": stream, "wrong-key": wrong_key, "metrics": metrics}


def _asked(fields: dict[str, Any]) -> Any:
    """The answer to a question; a model that still loads is waited for."""
    model = os.environ["MODEL"]
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": QUESTION}], **fields}).encode()
    deadline = time.monotonic() + _timeout_s()
    while True:
        try:
            return _open("/v1/chat/completions", _key() | {"Content-Type": "application/json"}, body)
        except (urllib.error.URLError, TimeoutError) as error:
            said = error.read().decode() if isinstance(error, urllib.error.HTTPError) else str(error)
            may_come = not isinstance(error, urllib.error.HTTPError) or error.code == 503
            if not may_come or time.monotonic() > deadline:
                raise Failed(f"{model} did not answer: {said}") from None
            print(f"not yet: {said}", file=sys.stderr)
            time.sleep(RETRY_S)


def _reached(path: str, headers: dict[str, str]) -> Any:
    """An answer, whatever it is; a gateway that still starts is waited for."""
    deadline = time.monotonic() + _timeout_s()
    while True:
        try:
            return _open(path, headers)
        except urllib.error.HTTPError:
            raise
        except (urllib.error.URLError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise Failed(f"the gateway cannot be reached: {error}") from None
            time.sleep(RETRY_S)


def _open(path: str, headers: dict[str, str], body: bytes | None = None) -> Any:
    request = urllib.request.Request(os.environ["API"] + path, body, headers)
    # The certificate is for the name that clients use, and the Service is inside the cluster.
    context = ssl._create_unverified_context()  # noqa: S323
    return urllib.request.urlopen(request, timeout=_timeout_s(), context=context)


def _events(answer: Any) -> Iterator[bytes]:
    for line in answer:
        if line.startswith(b"data:"):
            yield line.removeprefix(b"data:").strip()


def _counted() -> float:
    """Requests that all gateways have counted."""
    name, _, port = os.environ["METRICS"].rpartition(":")
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Failed(f"{name} has no address: {error}") from None
    total = 0.0
    for host in sorted({str(address[0]) for *_, address in found}):
        place = f"[{host}]" if ":" in host else host
        try:
            with urllib.request.urlopen(f"http://{place}:{port}/metrics", timeout=_timeout_s()) as page:
                lines = page.read().decode().splitlines()
        except OSError as error:
            raise Failed(f"the gateway at {place} gives no metrics: {error}") from None
        total += sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(REQUESTS + "{"))
    return total


def _key() -> dict[str, str]:
    return {"Authorization": f"Bearer {Path(os.environ['KEY_FILE']).read_text().strip()}"}


def _timeout_s() -> float:
    return float(os.environ["TIMEOUT_S"])


if __name__ == "__main__":
    main()
