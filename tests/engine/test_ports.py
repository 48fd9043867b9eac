"""Ports of engines: the first of the range for the first engine, and never one for two."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from serving.engine.engine import EngineDied, free_port, port_among

HOST = "127.0.0.1"


def test_engines_of_one_node_get_different_ports_before_they_listen() -> None:
    """A server binds its port half a minute after it was chosen; the first port is given first, and again afterwards."""
    first = free_port(HOST)
    with port_among(HOST, (first, first + 9)) as one, port_among(HOST, (first, first + 9)) as two:
        assert one == first and one < two <= first + 9
    with port_among(HOST, (first, first + 9)) as again:
        assert again == first


def test_a_port_that_somebody_listens_on_is_left_out() -> None:
    """Whoever it is."""
    with closing(socket.socket()) as other:
        other.bind((HOST, 0))
        other.listen()
        taken = other.getsockname()[1]
        with port_among(HOST, (taken, taken + 9)) as port:
            assert port > taken


def test_a_full_range_is_told() -> None:
    """In the replica's state, where somebody looks."""
    port = free_port(HOST)
    with port_among(HOST, (port, port)), pytest.raises(EngineDied, match="port_range"), port_among(HOST, (port, port)):
        pass
