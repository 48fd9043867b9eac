"""Serve's hook says what the directory said last; whatever goes wrong meanwhile changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.engine.hook import Wanted
from tests.waiting import until


class Directory:
    """An HTTP server that answers as it is told: a status, and a body that may be shorter than it promises."""

    def __init__(self) -> None:
        self.says: tuple[int, bytes, int] = (200, b"null", 4)
        self.location = ""
        self.asked: list[tuple[str, str | None]] = []
        directory = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                directory.asked.append((self.path, self.headers.get("Authorization")))
                status, body, length = directory.says
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                if directory.location:
                    self.send_header("Location", directory.location)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def say(self, body: bytes, status: int = 200, length: int | None = None) -> None:
        """From now on; returns when it has been asked twice more."""
        self.says = (status, body, len(body) if length is None else length)
        count = len(self.asked)
        until(lambda: len(self.asked) >= count + 2, 20)


@pytest.fixture
def directory() -> Iterator[Directory]:
    it = Directory()
    yield it
    it.server.shutdown()
    it.server.server_close()


def hook(directory: Directory, folder: Path, members: int = 1) -> Wanted:
    (folder / "secret").write_text("s3cret\n")
    return Wanted("m", members, directory.url, str(folder / "secret"))


def replicas(it: Wanted, target: int = 7) -> int:
    """What Serve hears, while it has `target` replicas."""
    context: Any = SimpleNamespace(target_num_replicas=target)
    return it(context)[0]


def test_nothing_changes_until_the_directory_has_spoken(directory: Directory, tmp_path: Path) -> None:
    """A young directory says nothing, and Serve keeps what it has."""
    it = hook(directory, tmp_path)
    assert replicas(it) == 7
    directory.say(b"null")
    assert replicas(it) == 7 and set(directory.asked) == {("/directory/wanted", "Bearer s3cret")}
    directory.say(b'{"m": 2, "other": 5}')
    assert replicas(it) == 2


def test_an_engine_over_several_nodes_is_several_replicas(directory: Directory, tmp_path: Path) -> None:
    """The directory counts engines, Serve their members."""
    it = hook(directory, tmp_path, members=2)
    directory.say(b'{"m": 3}')
    assert replicas(it) == 6


def test_the_last_number_stands_through_every_kind_of_failure(directory: Directory, tmp_path: Path) -> None:
    """An error, broken JSON, broken text, an answer cut short, a model left out: it goes on asking, and says what it knew."""
    it = hook(directory, tmp_path)
    directory.say(b'{"m": 3}')
    directory.say(b"", status=500)
    directory.say(b"{")
    directory.say(b'"\xff"')
    directory.say(b'{"m"', length=100)
    directory.say(b"{}")
    assert replicas(it) == 3
    directory.say(b'{"m": 4}')
    assert replicas(it) == 4


def test_the_secret_is_for_the_directory_alone(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a proxy that the environment names nor a redirect gets it."""
    other = Directory()
    monkeypatch.setenv("http_proxy", other.url)
    it = hook(directory, tmp_path)
    directory.location = other.url
    directory.say(b"", status=302)
    directory.location = ""
    directory.say(b'{"m": 1}')
    assert replicas(it) == 1 and other.asked == []
    other.server.shutdown()
    other.server.server_close()
