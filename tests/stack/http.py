"""Plain HTTP for tests that must not depend on a client's manners."""

import http.client
import json
from collections.abc import Mapping
from urllib.parse import urlsplit


def call(
    base_url: str,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 120,
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and body of one request; `body` is sent as JSON unless it is bytes."""
    parts = urlsplit(base_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    payload = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        connection.request(method, path, payload, {"Content-Type": "application/json"} | dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
