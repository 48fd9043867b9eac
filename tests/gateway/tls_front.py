"""TLS before the tests' PostgreSQL, whose build has none: a proxy that does what a server with a certificate does."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

#: Bytes of PostgreSQL's SSLRequest: its length and a code, https://www.postgresql.org/docs/18/protocol-message-formats.html
_SSL_REQUEST_BYTES = 8


def write_certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """A certificate for `host` that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    (folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "tls.key").write_bytes(key_bytes)
    return folder / "tls.crt", folder / "tls.key"


@contextlib.contextmanager
def tls_front(behind: Path, certificate: Path | None = None, key: Path | None = None) -> Iterator[int]:
    """A port that offers TLS, or declines it without a certificate, before the socket `behind`."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_accept, args=(listening, behind, context), daemon=True).start()
        yield listening.getsockname()[1]
        # Wakes `accept`, which closing does not.
        listening.shutdown(socket.SHUT_RDWR)


def _accept(listening: socket.socket, behind: Path, context: ssl.SSLContext | None) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = listening.accept()
            threading.Thread(target=_relay, args=(client, behind, context), daemon=True).start()


def _relay(client: socket.socket, behind: Path, context: ssl.SSLContext | None) -> None:
    with contextlib.suppress(OSError), client, socket.socket(socket.AF_UNIX) as server:
        client.recv(_SSL_REQUEST_BYTES, socket.MSG_WAITALL)
        client.sendall(b"S" if context else b"N")
        if context is not None:
            with context.wrap_socket(client, server_side=True) as secured:
                server.connect(str(behind))
                _pump_both(secured, server)


def _pump_both(one: socket.socket, other: socket.socket) -> None:
    # TLS may hold bytes that select() does not see; a thread a direction has no such trouble.
    back = threading.Thread(target=_pump, args=(other, one), daemon=True)
    back.start()
    _pump(one, other)
    back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
