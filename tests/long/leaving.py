"""A client that may leave before its answer is complete."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests.stack.http import bearer


@contextmanager
def answering(base_url: str, path: str, body: object, key: str) -> Iterator[http.client.HTTPResponse]:
    """The answer from its headers on; the connection is closed afterwards, wherever the answer has got to."""
    parts = urlsplit(base_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
    try:
        connection.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"} | bearer(key))
        with connection.getresponse() as answer:
            yield answer
    finally:
        connection.close()
