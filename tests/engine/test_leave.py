"""A pod's last act: where it finds the head of its Ray cluster once names have gone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from serving.engine.leave import head_address, plain


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that only another pod would run: nothing of it listens any more, and one connection goes on."""
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        number = server.getsockname()[1]
        with closing(socket.socket(socket.AF_INET6)) as client:  # as gRPC's sockets are
            client.connect(("::ffff:127.0.0.1", number))
            accepted, _ = server.accept()
            server.close()
            with closing(accepted):
                yield number


def test_the_head_is_found_by_the_connection_that_is_there(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its name was: the Service of a head that is deleted is deleted with it."""
    monkeypatch.setenv("RAY_ADDRESS", f"gone-head-svc.serving.svc:{port}")
    assert head_address() == f"127.0.0.1:{port}"


def test_the_head_itself_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It listens on that port, and may have a connection to a Redis that has the same one."""
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        assert head_address() is None


@pytest.mark.parametrize(
    ("shown", "meant"), [("::ffff:10.1.2.3", "10.1.2.3"), ("10.1.2.3", "10.1.2.3"), ("fd00::1", "fd00::1")]
)
def test_an_address_is_one_that_ray_reads(shown: str, meant: str) -> None:
    """Ray takes no IPv4 address in IPv6's clothes."""
    assert plain(shown) == meant
