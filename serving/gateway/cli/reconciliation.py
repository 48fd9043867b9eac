"""Reconciliation: `serving ledger check`: engines' own counters, read from them, against the ledger's rows (`ledger/balance.py`).

A moment at rest is waited for: twice in a row, a little apart, engines, their replicas' reports and the ledger say the same.
"""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar
from urllib.parse import urlencode

import msgspec
import typer

from serving.config import Settings, load, override
from serving.errors import Refusal
from serving.gateway.cli.printing import AsJson, print_json, print_table, settings_of
from serving.plane_tls import client_context
from serving.secret import PlaneSecret
from serving.wire import DIRECTORY_ROUTE, DirectoryAnswer, ReplicaReport, ReplicaState

if TYPE_CHECKING:
    from serving.gateway.ledger.balance import Balance, Counted, Suspect
    from serving.gateway.store.store import Store

#: vLLM's own names (0.32), and the start of its server's process, which Prometheus' client adds where there is one process.
PROMPT_TOKENS = "vllm:prompt_tokens_total"
GENERATION_TOKENS = "vllm:generation_tokens_total"
RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
STARTED_AT = "process_start_time_seconds"
NAMES = (PROMPT_TOKENS, GENERATION_TOKENS, RUNNING, WAITING, STARTED_AT)
#: Seconds between two looks: longer than the longest heartbeat, so that a replica's report has come meanwhile.
APART_S = 2.5
#: Seconds for one answer of an engine or a directory, and its bytes.
TIMEOUT_S = 10.0
BYTES_MAX = 16 * 1024 * 1024

T = TypeVar("T", bound=msgspec.Struct)


class Plane:
    """The engine plane as this command asks it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.gateway
        path = settings.secret_file
        self._secret = PlaneSecret(path) if path.exists() or settings.gateway.directories else None
        tls: ssl.SSLContext | None = client_context(settings.plane_tls.ca_file) if settings.plane_tls else None
        # No proxy of the environment's: engines are inside.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
        )

    def counted(self) -> list[Counted]:
        """What every engine that serves says of itself now; raises Refusal where a part of the plane does not answer."""
        return [it for url, reports in self._listed() for it in self._of_engine(url, reports)]

    def _listed(self) -> Iterator[tuple[str, Sequence[ReplicaReport]]]:
        for directory in self._settings.directories:
            answer = self._struct(directory.rstrip("/") + DIRECTORY_ROUTE, DirectoryAnswer)
            for it in answer.replicas:
                if it.report.url and not it.report.rank and it.report.state in _SERVES:
                    yield it.report.url, [it.report]
        for engine in self._settings.engines:
            yield engine.rstrip("/"), []

    def _of_engine(self, url: str, reports: Sequence[ReplicaReport]) -> Iterator[Counted]:
        from serving.gateway.ledger.balance import Counted, Counts

        page = self._read(f"{url}/metrics?{urlencode([('name[]', name) for name in NAMES])}").decode(errors="replace")
        found = figures(page)
        counters = Counts(int(found.get(PROMPT_TOKENS, 0)), int(found.get(GENERATION_TOKENS, 0)))
        requests = int(found.get(RUNNING, 0) + found.get(WAITING, 0))
        for report in reports or self._models(url):
            load = report.load
            yield Counted(
                replica_id=report.replica_id,
                model=report.model,
                counters=counters,
                own=Counts(load.own_prompt_tokens, load.own_generation_tokens),
                own_unanswered=load.own_unanswered,
                requests=requests,
                started_at=found.get(STARTED_AT),
            )

    def _models(self, url: str) -> list[ReplicaReport]:
        """An engine without a directory: as gateways call it."""
        (first, *_) = self._struct(f"{url}/v1/models", _Models).data
        return [ReplicaReport(f"{url}#{first.id}", first.id, url, ReplicaState.READY)]

    def _struct(self, url: str, shape: type[T]) -> T:
        try:
            return msgspec.json.decode(self._read(url), type=shape)
        except (msgspec.DecodeError, ValueError):
            raise Refusal(f"{url} answers with something else than it should.") from None

    def _read(self, url: str) -> bytes:
        headers = {"Authorization": f"Bearer {self._secret.sent}"} if self._secret else {}
        try:
            with self._opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
                body: bytes = answer.read(BYTES_MAX)
                return body
        except (OSError, ValueError) as error:
            reason = f"status {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
            raise Refusal(f"{url.partition('?')[0]} does not answer ({reason}).") from None


_SERVES = (ReplicaState.READY, ReplicaState.DRAINING)


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def figures(page: str) -> dict[str, float]:
    """Prometheus' text, each sample summed over its labels."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in NAMES:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def balances(
    store: Store,
    counted: Callable[[], list[Counted]],
    wait_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Balance]:
    """Compare at a moment at rest, or as things are after `wait_s` seconds without one."""
    gives_up_at = clock() + wait_s
    before: list[Balance] | None = None
    while True:
        now = _compared(store, counted)
        is_at_rest = now == before and not any(it.counted.requests for it in now)
        if is_at_rest or clock() + APART_S > gives_up_at:
            return now
        before = now
        sleep(APART_S)


def _compared(store: Store, counted: Callable[[], list[Counted]]) -> list[Balance]:
    from serving.gateway.ledger.balance import Balance, billed

    # The ledger first: what engines count afterwards is never less than it had.
    rows = {it.replica_id: billed(store, it) for it in counted()}
    return [Balance(it, rows[it.replica_id]) for it in counted() if it.replica_id in rows]


def check(
    context: typer.Context,
    directory: Annotated[list[str] | None, typer.Option(help="A directory's base URL, else the settings'.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="An engine's base URL, else the settings'.")] = None,
    wait_s: Annotated[float, typer.Option("--wait-s", min=0, help="Seconds to wait for a moment at rest.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Compare the ledger with the token counters of the engines that run, and name the calls that explain a difference.

    Exit code 1 where a difference is left that nothing explains.
    """
    from serving.gateway.audit import actors
    from serving.gateway.cli.opening import journalled
    from serving.gateway.identity.acts import Act, ActKind
    from serving.gateway.ledger.balance import Verdict

    settings = settings_of(context)
    if directory or engine:
        settings = override(settings, gateway={"directories": directory or [], "engines": engine or []})
    if not settings.gateway.directories and not settings.gateway.engines:
        settings = _of_this_machine(settings)
    plane = Plane(settings)
    with journalled(settings) as (store, journal):
        journal.record(actors.at_command_line(), Act(ActKind.USAGE_READ, "usage", details={"check": True}))
        found = balances(store, plane.counted, wait_s)
    if as_json:
        print_json([_Row(it.verdict, it.left, it.counted, it.billed) for it in found])
    else:
        _show(found)
    if any(it.verdict is Verdict.UNEXPLAINED for it in found):
        raise typer.Exit(1)


def _of_this_machine(settings: Settings) -> Settings:
    """The settings of the gateway that `serving up` runs here."""
    path = settings.home / "logs" / "gateway-settings.yaml"
    if not path.exists():
        raise Refusal("The settings name no directory and no engine, and `serving up` has never run in this home.")
    return load(path)


class _Row(msgspec.Struct, frozen=True):
    verdict: str
    #: Counted besides own questions and completed calls.
    left: msgspec.Struct
    counted: msgspec.Struct
    billed: msgspec.Struct


_SUSPECT_HEADER = ("CALL", "WHY", "OUTCOME", "ESTIMATED BY", "FAILED ATTEMPTS", "BILLED", "BILLED GEN")


def _show(found: Sequence[Balance]) -> None:
    header = ("REPLICA", "PROMPT", "GENERATED", "OWN", "OWN GEN", "CALLS", "BILLED", "BILLED GEN", "LEFT", "LEFT GEN")
    print_table((*header, "VERDICT"), [_cells(it) for it in found])
    for it in found:
        if it.left.is_nothing and not it.counted.requests:
            continue
        if it.counted.own_unanswered:
            typer.echo(f"\n{it.counted.replica_id}: {it.counted.own_unanswered} of its own questions had no answer.")
        if it.billed.suspects:
            typer.echo(
                f"\n{it.counted.replica_id}: {it.billed.suspects} calls may have cost more than they are billed for:"
            )
            print_table(_SUSPECT_HEADER, [_suspect_cells(suspect) for suspect in it.billed.named])


def _cells(it: Balance) -> tuple[str, ...]:
    counters, own, completed, left = it.counted.counters, it.counted.own, it.billed.completed, it.left
    numbers = (
        *(counters.prompt_tokens, counters.generation_tokens, own.prompt_tokens, own.generation_tokens),
        *(it.billed.completed_requests, completed.prompt_tokens, completed.generation_tokens),
        *(left.prompt_tokens, left.generation_tokens),
    )
    return (it.counted.replica_id, *map(str, numbers), it.verdict)


def _suspect_cells(it: Suspect) -> tuple[str, ...]:
    billed = (str(it.billed.prompt_tokens), str(it.billed.generation_tokens))
    return (it.request_id, it.why, it.outcome, it.estimated_by or "-", str(it.attempts), *billed)
