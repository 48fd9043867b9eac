"""PostgreSQL: the database that several gateways share. Its address comes from a file and appears in no message.

libpq reads the address itself, so that its parameters (`sslmode`, `sslrootcert`, several hosts …) mean what they always do.
"""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, create_engine

from serving.errors import Refusal

#: Seconds a statement of the gateway may run (the largest take milliseconds); `Store.snapshot` and `alone` lift it.
STATEMENT_TIMEOUT_S = 5
#: Seconds a transaction waits for one of the pool's connections: as long as SQLite waits for another writer.
POOL_TIMEOUT_S = 2.0

_SCHEMES = re.compile(r"(postgres|postgresql|postgresql\+psycopg)://")

#: What an address may say otherwise.
_DEFAULTS: dict[str, str | int] = {
    "application_name": "gpt-oss-serving",
    # Seconds for each host of the address.
    "connect_timeout": 3,
    # A server that vanished without a word is noticed after 10 s, or 25 s when the connection was idle.
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "options": f"-c statement_timeout={STATEMENT_TIMEOUT_S}s",
}


def engine(url_file: Path, pool_size: int) -> Engine:
    """An engine with a bounded pool. Raises Refusal when the file holds no PostgreSQL address."""
    _parameters(url_file)
    return create_engine(
        "postgresql+psycopg://",
        creator=lambda: _connect(url_file),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        # Asked before each use: after a restart of the database no transaction meets a dead connection.
        pool_pre_ping=True,
        hide_parameters=True,
    )


def reason(error: BaseException | None) -> str:
    """PostgreSQL's own words, one line of them, without any name: a mistyped address has its password in the host's."""
    if not isinstance(error, psycopg.Error):
        return type(error).__name__
    line = (error.diag.message_primary or str(error)).strip().partition("\n")[0]
    return re.sub(r"""(["']).*?\1""", "…", line) or type(error).__name__


def _connect(url_file: Path) -> psycopg.Connection:
    # The file is read for each new connection, so that a changed password needs no restart.
    try:
        parameters = _parameters(url_file)
    except Refusal as refusal:
        raise psycopg.OperationalError(str(refusal)) from None
    # Nothing is prepared: a pooler in front (PgBouncer) may give each transaction another server connection.
    return psycopg.connect(prepare_threshold=None, **parameters)  # type: ignore[arg-type] # psycopg's own, as given


def _parameters(url_file: Path) -> dict[str, str | int | None]:
    try:
        url = url_file.read_text().strip()
    except OSError as error:
        raise Refusal(f"The file {url_file} cannot be read: {(error.strerror or 'unknown error').lower()}.") from None
    except UnicodeDecodeError:
        raise _no_address(url_file) from None
    if not _SCHEMES.match(url) or "\n" in url:
        raise _no_address(url_file)
    try:
        parameters = conninfo_to_dict(_SCHEMES.sub("postgresql://", url, count=1))
    except psycopg.Error:
        raise _no_address(url_file) from None
    if "@" in str(parameters.get("host") or ""):
        raise _no_address(url_file)
    return {**_DEFAULTS, **parameters}


def _no_address(url_file: Path) -> Refusal:
    return Refusal(
        f"The file {url_file} must hold one line like postgresql://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full, "
        "special characters percent-encoded; no other database is supported."
    )
