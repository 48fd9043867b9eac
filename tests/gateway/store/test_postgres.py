"""PostgreSQL: its address stays secret, it heals by itself, and several gateways share it without losing a row."""

from __future__ import annotations

import logging
import socket
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from serving.config import StoreSettings
from serving.errors import Refusal, StoreUnavailable
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import Outcome, Usage
from serving.gateway.store.store import Store
from serving.gateway.store.tables import tenants
from tests.gateway.calls import CALLER, open_call, settle
from tests.gateway.places import PostgresPlace
from tests.gateway.tls_front import tls_front, write_certificate
from tests.waiting import until

PASSWORD = "Zebra%2FQuagga"


def open_at(home: Path, address: str) -> Store:
    (home / "url").write_text(address)
    return Store.open(home, StoreSettings(url_file=home / "url"))


def shows_the_secret(text: str) -> bool:
    return any(part in text for part in ("Zebra", "Quagga", "agga"))


@pytest.mark.parametrize(
    "address",
    [
        "",
        f"mysql://u:{PASSWORD}@host/db",
        f"postgresql+psycopg2://u:{PASSWORD}@host/db",
        f"host=host password={PASSWORD}",
        f"postgresql://u:{PASSWORD}@host/db\npostgresql://u:{PASSWORD}@host/db",
        "postgresql://u:Zebra@Quagga@host/db",
        "postgresql://u:Zebra Quagga@host/db",
        f"postgresql://u:{PASSWORD}@host/db?no_such=1",
    ],
)
def test_what_is_no_address_of_postgresql_is_refused_without_showing_it(tmp_path: Path, address: str) -> None:
    """The sentence names the file and the form, and never what is in the file."""
    with pytest.raises(Refusal) as refused:
        open_at(tmp_path, address)

    assert "must hold one line like postgresql://USER:PASSWORD@HOST" in str(refused.value)
    assert not shows_the_secret(str(refused.value))


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_server_that_is_not_there_is_told_without_the_address(tmp_path: Path, scheme: str) -> None:
    """Neither password nor user nor host is in the refusal; what went wrong is."""
    with pytest.raises(Refusal, match="Connection refused") as refused:
        open_at(tmp_path, f"{scheme}://someone:{PASSWORD}@127.0.0.1:1/db")

    assert not any(part in str(refused.value) for part in (PASSWORD, "Zebra", "someone", "127.0.0.1"))
    assert "\n" not in str(refused.value)


def test_a_server_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    """A connection that hangs ends after three seconds, not after the kernel's minutes."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        started = time.monotonic()
        with pytest.raises(Refusal, match="timeout"):
            open_at(tmp_path, f"postgresql://u:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}/db")

    assert time.monotonic() - started < 10


def test_tls_is_as_the_address_says(shared: PostgresPlace, tmp_path: Path) -> None:
    """`sslmode` and `sslrootcert` mean what they mean to libpq: the right certificate or no connection."""
    certificate, key = write_certificate(tmp_path / "ours", "db.example")
    stranger, _ = write_certificate(tmp_path / "strangers", "db.example")
    behind = shared.server.folder / ".s.PGSQL.5432"

    def address(port: int, **parameters: str) -> str:
        where = {"host": "db.example", "hostaddr": "127.0.0.1", "port": str(port)}
        return shared.server.url(shared.database, **where, **parameters)

    with tls_front(behind, certificate, key) as port:
        verified = address(port, sslmode="verify-full", sslrootcert=str(certificate))
        with open_at(tmp_path, verified) as store, store.begin() as connection:
            assert connection.execute(select(tenants)).all() == []
        with pytest.raises(Refusal, match="certificate verify failed"):
            open_at(tmp_path, address(port, sslmode="verify-full", sslrootcert=str(stranger)))
    with tls_front(behind) as port, pytest.raises(Refusal, match="does not support SSL"):
        open_at(tmp_path, address(port, sslmode="require"))


def test_a_restarted_database_heals_by_itself(shared: PostgresPlace) -> None:
    """While it is away every transaction is an outage; the first one afterwards works, on the same Store."""
    with shared.open() as store:
        with store.begin() as connection:
            connection.execute(select(tenants))
        shared.server.stop()
        with pytest.raises(StoreUnavailable), store.begin():
            pass
        shared.server.start()

        with store.begin() as connection:
            assert connection.execute(select(tenants)).all() == []


def test_no_connection_outlives_a_closed_store(shared: PostgresPlace) -> None:
    """A gateway that ends does not wait for its threads: what one of them still does, or begins only then, closes its own."""

    def connections() -> int:
        sessions = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        return len(shared.execute(f"select pid {sessions}"))

    store = shared.open()
    with store.begin() as one, store.begin() as another:
        for connection in (one, another):
            assert connection.execute(select(tenants)).all() == []
        store.close()
        until(lambda: connections() == 2)
    until(lambda: connections() == 0)

    with store.begin() as connection:
        assert connection.execute(select(tenants)).all() == []
    until(lambda: connections() == 0)


def test_a_restart_under_a_running_ledger_loses_nothing(
    shared: PostgresPlace, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls end before, while and after the database is killed; each is there once, also those that went to the file."""
    caplog.set_level(logging.INFO)
    with shared.open() as store, Ledger(store, clock=time.time, spill_rows=20) as ledger:
        with open_call(ledger, "long", caller=CALLER) as call:
            for number in range(300):
                if number == 100:
                    shared.server.stop()
                if number == 200:
                    until((shared.home / "ledger-spill.jsonl").exists)
                    shared.server.start()
                settle(ledger, f"r{number:03}", Usage(number, 1))
                time.sleep(0.001)
            call.outcome = Outcome.OK
        until(lambda: ledger.pending_rows == 0)

    written = shared.execute("select request_id, outcome, prompt_tokens from ledger order by request_id")
    assert written == [("long", "ok", 0), *((f"r{number:03}", "ok", number) for number in range(300))]
    assert "the ledger has caught up" in caplog.text and "Traceback" not in caplog.text
    assert not shows_the_secret(caplog.text) and str(shared.server.folder) not in caplog.text


def test_two_gateways_file_the_same_request_ids_side_by_side(shared: PostgresPlace) -> None:
    """Clients choose request ids: of two calls under one id at two gateways neither is lost nor overwritten."""

    def serve(name: str, tokens: int) -> None:
        with shared.open() as store, Ledger(store, clock=time.time, gateway_id=f"{name}:1:1") as ledger:
            for number in range(300):
                settle(ledger, f"r{number:03}", Usage(tokens, number))

    gateways = [threading.Thread(target=serve, args=(name, tokens)) for name, tokens in (("pod-a", 1), ("pod-b", 2))]
    for gateway in gateways:
        gateway.start()
    for gateway in gateways:
        gateway.join()

    found = shared.execute("select gateway_id, completion_tokens, prompt_tokens from ledger order by 1, 2")
    assert found == [
        (f"{name}:1:1", number, tokens) for name, tokens in (("pod-a", 1), ("pod-b", 2)) for number in range(300)
    ]


def test_an_id_taken_while_a_gateway_ends_is_filed_beside_it(shared: PostgresPlace) -> None:
    """The last write is repeated at once: there is no later one, and the file beside the database would stay."""
    with shared.open() as store:
        with Ledger(store, clock=time.time, gateway_id="pod-a:1:1") as other:
            settle(other, "elsewhere", Usage(1, 1))
        ledger = Ledger(store, clock=time.time, gateway_id="pod-b:1:1")
        settle(ledger, "r", Usage(2, 2))
        ended: list[int] = []
        ending = threading.Thread(target=lambda: ended.append(ledger.stop()))
        with store.begin() as taking:
            taking.exec_driver_sql("update ledger set request_id = 'r'")
            ending.start()
            waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'transactionid'"
            until(lambda: shared.execute(waiting) == [(1,)])
        ending.join()

    assert ended == [0]
    assert not (shared.home / "ledger-spill.jsonl").exists()
    found = shared.execute("select gateway_id, split_part(request_id, '~', 1) from ledger order by 1")
    assert found == [("pod-a:1:1", "r"), ("pod-b:1:1", "r")]


def test_connections_are_bounded(shared: PostgresPlace) -> None:
    """Past `pool_size` a transaction waits, and gives up as in an outage: gateways share the server's connections."""
    with (
        Store.open(shared.home, shared.settings.model_copy(update={"pool_size": 1})) as store,
        store.begin(),
        pytest.raises(StoreUnavailable) as caught,
        store.begin(),
    ):
        pass

    assert caught.value.reason == "every connection of the pool is in use"


def test_a_changed_password_needs_no_restart(shared: PostgresPlace) -> None:
    """The file is read for each new connection: what a rotation puts there is used."""
    url_file = shared.home / "url"
    address = url_file.read_text()
    with shared.open() as store:
        for text in (address.replace("user=postgres", "user=nobody"), "damaged"):
            url_file.write_text(text)
            shared.take_away()
            shared.bring_back()
            with pytest.raises(StoreUnavailable), store.begin():
                pass
        url_file.write_text(address)

        with store.begin() as connection:
            assert connection.execute(select(tenants)).all() == []


def test_a_gateways_statement_has_an_end_and_a_reports_has_none(shared: PostgresPlace) -> None:
    """A statement that hangs becomes an outage; `serving usage` over a large ledger may take its time."""
    with shared.open() as store:
        with pytest.raises(StoreUnavailable) as caught, store.begin() as connection:
            connection.exec_driver_sql("select pg_sleep(5)")
        with store.snapshot() as connection:
            connection.exec_driver_sql("select pg_sleep(1.2)")

    assert caught.value.reason == "canceling statement due to statement timeout"
