"""On a laptop, nothing answers from outside."""

from __future__ import annotations

import socket

import grpc
import psutil
import pytest

from tests.stack.running import Stack


def test_nothing_answers_off_loopback_without_a_token(stack: Stack) -> None:
    """From the machine's own address, as a neighbour on its network would come: connections are refused.

    The one port of each Serve replica that Ray opens everywhere answers only to the token.
    """
    outside = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    if not outside:
        pytest.skip("this machine has no address but loopback")
    listening = {
        (connection.laddr.port, process.name())
        for process in (psutil.Process(stack.process.pid), *stack.members())
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert stack.port in {port for port, _ in listening}
    for port, name in listening:
        try:
            socket.create_connection((outside[0], port), timeout=5).close()
        except ConnectionRefusedError:
            continue
        assert name.startswith("ray::ServeRepli"), f"{name} listens on every interface"
        with grpc.insecure_channel(f"{outside[0]}:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=10)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
