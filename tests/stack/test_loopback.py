"""On a laptop, nothing answers from outside."""

from __future__ import annotations

import socket

import grpc
import psutil
import pytest

from tests.stack.running import Stack

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def test_nothing_answers_off_loopback_without_a_token(stack: Stack) -> None:
    """Every server of every process is bound to loopback, except one of each Serve replica.

    To a neighbour on the machine's network those answer that they want the token.
    """
    listening = [
        (process.name(), connection.laddr)
        for process in (psutil.Process(stack.process.pid), *stack.members())
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    open_to_all = [(name, address.port) for name, address in listening if address.ip not in LOOPBACK]
    assert stack.port in {address.port for _, address in listening}
    assert not [name for name, _ in open_to_all if not name.startswith("ray::ServeRepli")]
    for _, port in open_to_all:
        with grpc.insecure_channel(f"{_own_address()}:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=30)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def _own_address() -> str:
    """An address of this machine at which others reach it; loopback where it has none."""
    addresses = [
        it.address for of_one in psutil.net_if_addrs().values() for it in of_one if it.family == socket.AF_INET
    ]
    return next((it for it in addresses if not it.startswith("127.")), "127.0.0.1")
