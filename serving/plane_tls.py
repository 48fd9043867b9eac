"""Plane TLS: one name for every server of the engine plane, checked by its clients (CELL-14).

A client expects that name whatever address it has called: RFC 9525 leaves the reference identity to the client. The
plane secret proves who calls.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from serving.errors import Refusal

SERVER_NAME = "engine.gpt-oss-serving"


class _OneName(ssl.SSLContext):
    """A client context that expects SERVER_NAME at any address: asyncio calls one of the two methods, urllib the other."""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, SERVER_NAME, session)

    def wrap_socket(self, *arguments: Any, **named: Any) -> ssl.SSLSocket:
        return super().wrap_socket(*arguments, **named | {"server_hostname": SERVER_NAME})


def client_context(ca_file: Path) -> ssl.SSLContext:
    """Trusts what `ca_file` signed for SERVER_NAME and nothing else; raises Refusal when the file cannot be used."""
    context = _OneName(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = "holds no certificate" if isinstance(error, ssl.SSLError) else (error.strerror or "").lower()
        raise Refusal(f"The authority of the engine plane, {ca_file}, cannot be used: {reason}.") from None
    return context
