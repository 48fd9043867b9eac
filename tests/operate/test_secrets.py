"""The Job that makes an installation's secrets: once, with values that work, and never over what is there."""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from serving.errors import Refusal
from serving.gateway.identity import keys
from serving.operate import secrets
from tests.certificates import issue


class ApiServer(HTTPServer):
    """Takes secrets as Kubernetes does: 201, 409 when one of that name is there, 403 when it may not be."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.secrets: dict[str, dict[str, Any]] = {}
        self.allows = True

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["metadata"]["name"]
        is_ours = self.path == "/api/v1/namespaces/ns/secrets" and self.headers["Authorization"] == "Bearer token"
        status = 404 if not is_ours else 403 if not self.server.allows else 409 if name in self.server.secrets else 201
        if status == 201:
            self.server.secrets[name] = body
        self.send_response(status)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    files = issue(tmp_path, "kubernetes.default.svc", "127.0.0.1")
    (tmp_path / "token").write_text("token\n")
    server = ApiServer()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate_file, files.key_file)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_secret_is_made_once(api: ApiServer, tmp_path: Path) -> None:
    """A second run, or an upgrade, leaves every key and the pepper as they are."""
    assert secrets.ensure("127.0.0.1", api.port, "ns", "x-keys", {"pepper": b"1"}, tmp_path)
    assert not secrets.ensure("127.0.0.1", api.port, "ns", "x-keys", {"pepper": b"2"}, tmp_path)
    assert api.secrets["x-keys"]["data"] == {"pepper": base64.b64encode(b"1").decode()}


def test_what_may_not_be_made_is_refused(api: ApiServer, tmp_path: Path) -> None:
    """A cluster where nobody may create secrets gets them by hand, and is told so."""
    api.allows = False
    with pytest.raises(Refusal, match="make x-keys yourself"):
        secrets.ensure("127.0.0.1", api.port, "ns", "x-keys", {"pepper": b"1"}, tmp_path)


def test_outside_a_cluster_it_is_refused(tmp_path: Path) -> None:
    """There is no service account on a laptop."""
    with pytest.raises(Refusal, match="inside a cluster"):
        secrets.ensure("127.0.0.1", 1, "ns", "x", {}, tmp_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KUBERNETES_")}
    command = [sys.executable, "-m", "serving", "secrets", "ensure", "--namespace", "ns", "x", "a=plane"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and "inside a cluster" in result.stderr and result.stderr.count("\n") == 1


def test_each_kind_of_value_is_in_the_form_its_file_has() -> None:
    """A pepper of 32 bytes, a key that gateways accept, a plane secret of one line."""
    from serving import cli

    fresh = {kind: make() for kind, make in cli._FRESH.items()}
    assert len(fresh["pepper"]) == keys.PEPPER_BYTES
    assert keys.id_of(fresh["api-key"].decode().strip())
    assert len(fresh["plane"].split()) == 1 and len(fresh["plane"]) >= 43
    assert all(make() != make() for make in cli._FRESH.values())
