"""Encryption between the planes: one name for all of its servers, and nobody else's certificate will do."""

from __future__ import annotations

import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import aiohttp
import pytest

from serving.config import PlaneTls
from serving.errors import Refusal
from serving.plane_tls import SERVER_NAME, client_context
from tests.certificates import issue


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Nobody reads it."""


@contextmanager
def serving_with(files: PlaneTls) -> Iterator[str]:
    """A server that shows this certificate; its base URL names an address."""
    server = HTTPServer(("127.0.0.1", 0), _Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate_file, files.key_file)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are what is tested
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def ask(url: str, ca_file: Path) -> int:
    """As gateways and replicas ask."""
    connector = aiohttp.TCPConnector(ssl=client_context(ca_file))
    async with aiohttp.ClientSession(connector=connector) as client, client.get(url) as answer:
        return answer.status


async def test_the_planes_own_certificate_is_known_at_any_address(tmp_path: Path) -> None:
    """Pods come and go with addresses that no certificate names."""
    files = issue(tmp_path, SERVER_NAME)
    with serving_with(files) as url:
        assert await ask(url, files.ca_file) == 204


def test_serves_hook_asks_in_the_same_way(tmp_path: Path) -> None:
    """It runs in a thread, and uses the standard library."""
    files = issue(tmp_path, SERVER_NAME)
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=client_context(files.ca_file)))
    with serving_with(files) as url, opener.open(url, timeout=10) as answer:
        assert answer.status == 204


async def test_another_name_of_the_same_authority_is_refused(tmp_path: Path) -> None:
    """A company's authority signs for many: any server of theirs could pose as an engine, even at that very address."""
    files = issue(tmp_path, "wiki.example", "127.0.0.1")
    with serving_with(files) as url:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await ask(url, files.ca_file)
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=client_context(files.ca_file)))
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            opener.open(url, timeout=10)


async def test_another_authority_is_refused(tmp_path: Path) -> None:
    """Whatever name it has signed."""
    (tmp_path / "ours").mkdir()
    ours, theirs = issue(tmp_path / "ours", SERVER_NAME), issue(tmp_path, SERVER_NAME)
    with serving_with(theirs) as url, pytest.raises(aiohttp.ClientConnectorCertificateError):
        await ask(url, ours.ca_file)


@pytest.mark.parametrize(("content", "words"), [(None, "no such file"), ("no PEM", "no certificate")])
def test_an_authority_that_is_none_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    """At the start, in one sentence: later every call would fail."""
    if content is not None:
        (tmp_path / "ca.crt").write_text(content)
    with pytest.raises(Refusal, match=words):
        client_context(tmp_path / "ca.crt")
