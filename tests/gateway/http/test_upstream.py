"""Upstream: one client session, open while the gateway runs."""

from __future__ import annotations

import pytest

from serving.errors import GatewayFull
from serving.gateway.http.upstream import Upstream


async def test_the_session_is_open_inside_and_closed_after() -> None:
    """Before and afterwards a request learns that this gateway cannot serve it."""
    upstream = Upstream(1.0)
    assert not upstream.is_open
    with pytest.raises(GatewayFull, match="is stopping"):
        _ = upstream.session
    async with upstream.opened() as session:
        assert upstream.is_open and upstream.session is session and not session.closed
    assert not upstream.is_open and session.closed


async def test_an_error_closes_it_too() -> None:
    """No connection outlives the gateway."""
    upstream = Upstream(1.0)
    with pytest.raises(ZeroDivisionError):
        async with upstream.opened() as session:
            raise ZeroDivisionError
    assert not upstream.is_open and session.closed


async def test_connections_are_as_many_as_calls_and_remember_nothing() -> None:
    """No limit of its own, no total time, no cookie of one engine shown to another."""
    async with Upstream(1.5).opened() as session:
        assert session.connector is not None and session.connector.limit == 0
        assert (session.timeout.total, session.timeout.sock_connect) == (None, 1.5)
        session.cookie_jar.update_cookies({"a": "b"})
        assert len(session.cookie_jar) == 0
