"""Accounting: `serving usage` and `serving ledger`: what was used, by whom, and what it cost."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from serving.errors import Refusal
from serving.gateway.cli.printing import AsJson, date, moment, print_json, print_table, settings_of
from serving.gateway.ledger.grouping import By

if TYPE_CHECKING:
    from serving.gateway.ledger.usage import Asked, CallRow, Sum, Tokens
    from serving.gateway.store.store import Store

#: Calls that `serving usage --calls` holds in memory at once.
CALLS_MAX = 100_000
#: Who writes the bill, where nothing else is said.
PROVIDER = "gpt-oss-serving"

ledger = typer.Typer(help="The ledger: one row for each call.", no_args_is_help=True)


class SumsAs(StrEnum):
    """How sums are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    #: CSV in the columns of FOCUS 1.2, a line for each day, tenant, key, model, class and kind of count.
    FOCUS = "focus"


class CallsAs(StrEnum):
    """How calls are exported."""

    CSV = "csv"
    JSONL = "jsonl"


OfTenant = Annotated[str | None, typer.Option("--tenant", help="One tenant alone.")]
OfKey = Annotated[str | None, typer.Option("--key", help="One key alone, by its id.")]
OfModel = Annotated[str | None, typer.Option("--model", help="One model or adapter alone, as it is served.")]
OfUser = Annotated[str | None, typer.Option("--user", help="One end user alone, by reference (`--by user`).")]
Since = Annotated[str | None, typer.Option(help="Calls from this ISO date or time on (UTC unless it says).")]
Until = Annotated[str | None, typer.Option(help="Calls before this ISO date or time.")]


def usage(
    context: typer.Context,
    tenant: OfTenant = None,
    key: OfKey = None,
    model: OfModel = None,
    user: OfUser = None,
    since: Since = None,
    until: Until = None,
    by: Annotated[By, typer.Option(help="What to group by.")] = By.TENANT,
    calls: Annotated[
        int, typer.Option(min=0, max=CALLS_MAX, help="Show this many of the newest calls, one a line, unsummed.")
    ] = 0,
    sums_as: Annotated[
        SumsAs, typer.Option("--format", help="How to print; `focus` is for charge-back.")
    ] = SumsAs.TABLE,
    provider: Annotated[str, typer.Option(help="Who charges, in FOCUS's columns.")] = PROVIDER,
    as_json: AsJson = False,
) -> None:
    """Sum up requests, tokens and prices, those that engines said and estimated ones apart."""
    asked = _asked(tenant, key, model, user, since, until)
    if as_json:
        sums_as = SumsAs.JSON
    if calls and sums_as in (SumsAs.CSV, SumsAs.FOCUS):
        raise Refusal("Single calls are printed as a table or with --json; `serving ledger export` writes them as CSV.")
    currency = settings_of(context).gateway.currency
    with _store(context, asked) as store:
        from serving.gateway.ledger import exports
        from serving.gateway.ledger import usage as usages

        if calls:
            _show_calls(usages.calls(store, asked, limit=calls), sums_as)
        elif sums_as is SumsAs.FOCUS:
            _write(exports.focus_csv(usages.each_charge(store, asked), currency, provider))
        else:
            _show_sums(usages.totals(store, by, asked), by, sums_as, currency)


@ledger.command("export")
def export_calls(
    context: typer.Context,
    tenant: OfTenant = None,
    key: OfKey = None,
    model: OfModel = None,
    user: OfUser = None,
    since: Since = None,
    until: Until = None,
    calls_as: Annotated[CallsAs, typer.Option("--format", help="How each call is written.")] = CallsAs.CSV,
) -> None:
    """Write every call of a period to standard output, oldest first, while gateways go on."""
    asked = _asked(tenant, key, model, user, since, until)
    with _store(context, asked) as store:
        from serving.gateway.ledger import exports
        from serving.gateway.ledger import usage as usages

        lines = exports.calls_csv if calls_as is CallsAs.CSV else exports.calls_jsonl
        _write(lines(usages.each_call(store, asked)))


def _asked(
    tenant: str | None, key: str | None, model: str | None, user: str | None, since: str | None, until: str | None
) -> Asked:
    from serving.gateway.ledger.usage import Asked

    return Asked(
        tenant=tenant,
        key_id=key,
        model=model,
        user_ref=user,
        since=None if since is None else moment(since),
        until=None if until is None else moment(until),
    )


@contextmanager
def _store(context: typer.Context, asked: Asked) -> Iterator[Store]:
    """The store, once the audit has it that its usage is read."""
    from serving.gateway.audit import actors
    from serving.gateway.cli.opening import journalled
    from serving.gateway.identity.acts import Act, ActKind

    with journalled(settings_of(context)) as (store, journal):
        told = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
        journal.record(actors.at_command_line(), Act(ActKind.USAGE_READ, "usage", details=told))
        yield store


def _write(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(line)


def _show_sums(sums: list[Sum], by: By, sums_as: SumsAs, currency: str) -> None:
    from serving.gateway.ledger import exports

    if sums_as is SumsAs.JSON:
        print_json(sums)
    elif sums_as is SumsAs.CSV:
        _write(exports.sums_csv(by, sums, currency))
    else:
        counts = ("REQUESTS", "PROMPT", "CACHED", "COMPLETION", "REASONING", currency)
        estimated = ("EST.REQUESTS", "EST.PROMPT", "EST.COMPLETION", f"EST.{currency}")
        print_table((by.value.upper(), *counts, *estimated, "OPEN"), [_sum_cells(total) for total in sums])


def _show_calls(newest: list[CallRow], sums_as: SumsAs) -> None:
    if sums_as is SumsAs.JSON:
        print_json(newest)
    else:
        who = ("STARTED", "TENANT", "KEY", "ROUTE", "MODEL", "STATUS", "OUTCOME")
        print_table((*who, "PROMPT", "COMPLETION", "ESTIMATED BY"), [_call_cells(call) for call in newest])


def _sum_cells(total: Sum) -> tuple[str, ...]:
    exact, estimated = total.exact, total.estimated
    numbers = (
        exact.requests,
        exact.prompt_tokens,
        exact.cached_prompt_tokens,
        exact.completion_tokens,
        exact.reasoning_tokens,
        _price(exact),
        estimated.requests,
        estimated.prompt_tokens,
        estimated.completion_tokens,
        _price(estimated),
        total.open_requests,
    )
    return (total.label or total.group, *(str(number) for number in numbers))


def _price(tokens: Tokens) -> str:
    from serving.gateway.ledger.prices import in_currency

    return in_currency(tokens.price_micros)


def _call_cells(call: CallRow) -> tuple[str, ...]:
    tokens = (str(call.prompt_tokens), str(call.completion_tokens), call.estimated_by or "-")
    who = (date(call.started_at), call.tenant, call.key_id)
    return (*who, call.route, call.model or "-", str(call.status), call.outcome, *tokens)
