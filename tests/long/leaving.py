"""A client that may leave before its answer is complete, or before it has begun."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests.stack.http import bearer


@contextmanager
def asking(base_url: str, path: str, body: object, key: str) -> Iterator[http.client.HTTPConnection]:
    """A connection on which the request was sent; closed afterwards, wherever the answer has got to."""
    parts = urlsplit(base_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
    try:
        connection.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"} | bearer(key))
        yield connection
    finally:
        connection.close()


@contextmanager
def answering(base_url: str, path: str, body: object, key: str) -> Iterator[http.client.HTTPResponse]:
    """The answer from its headers on; the rest of it is left unread."""
    with asking(base_url, path, body, key) as connection, connection.getresponse() as answer:
        yield answer
