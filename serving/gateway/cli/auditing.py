"""Auditing: `serving audit`: what was done, whether the audit of it is whole, and what an auditor takes along to see for themselves."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from serving.errors import Refusal
from serving.gateway.cli.printing import AsJson, date, moment, print_table, settings_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from serving.config import Settings
    from serving.gateway.audit.chain import Entry
    from serving.gateway.audit.checkpoints import Checkpoint
    from serving.gateway.audit.reading import Event, Page
    from serving.gateway.audit.verification import Report

SECONDS_PER_DAY = 86_400.0
#: Events of one page that `list` reads.
PAGE = 1000
#: Ends of chains that `verify` prints.
TAILS = 50
#: Bytes of one line of a file of entries or checkpoints.
LINE_BYTES_MAX = 1024 * 1024

audit = typer.Typer(help="Who did what and when, in chains that cannot be changed unseen.", no_args_is_help=True)

Since = Annotated[str | None, typer.Option(help="From this ISO date or time on (UTC unless it says).")]
Out = Annotated[Path | None, typer.Option("--out", help="A file to write or to add to, instead of standard output.")]


@audit.command("list")
def list_events(
    context: typer.Context,
    since: Since = None,
    until: Annotated[str | None, typer.Option(help="Before this ISO date or time.")] = None,
    tenant: Annotated[str | None, typer.Option(help="What concerns one tenant.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Such as key.create, call, sign_in; repeat for more. Else all.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, from the oldest on.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, one event a line.")] = False,
) -> None:
    """List what was done, oldest first: acts of administrators, calls, sign-ins. To look is an act too."""
    from serving.gateway.audit import actors, reading
    from serving.gateway.cli.opening import journalled
    from serving.gateway.identity.acts import Act, ActKind

    times = {"since": since, "until": until}
    since_s, until_s = (None if it is None else moment(it) for it in times.values())
    with journalled(settings_of(context)) as (store, journal):
        tenant_id = None if tenant is None else reading.tenant_called(store, tenant)
        told = {**times, "tenant": tenant, "kinds": kind}
        journal.record(actors.at_command_line(), Act(ActKind.AUDIT_READ, "audit", tenant_id or "", told))
        asked = reading.Asked(tenant_id, kind or None, since_s, until_s)
        found = list(_events(lambda after, count: reading.page(store, asked, after=after, limit=count), limit))
    if as_json:
        for event in found:
            typer.echo(msgspec.json.encode(event).decode())
    else:
        print_table(("AT", "KIND", "BY", "SUBJECT", "DETAILS"), [_cells(event) for event in found])


@audit.command("verify")
def verify_chains(
    context: typer.Context,
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoints that were kept elsewhere: a file of them, or a gateway's log; `-` is standard input."
        ),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(
            "--public-key", help="What `serving audit key` printed, of this and earlier peppers; else this pepper's."
        ),
    ] = None,
    entries: Annotated[
        Path | None, typer.Option(help="A file that `serving audit export` wrote, instead of the database.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find entries that were changed, removed, added, reordered or cut off; exit code 1 where there are any."""
    from serving.gateway.audit import verification
    from serving.gateway.audit.chain import Kind

    settings = settings_of(context)
    trusted = _trusted(settings, public_key)
    given = [] if checkpoints is None else list(_checkpoints(checkpoints))
    if entries is None:
        report = _verified_store(settings, given, trusted)
    else:
        statements = (entry for entry in _read(entries) if entry.kind == Kind.CHECKPOINT)
        report = verification.verify(_read(entries), statements, given, trusted)
    typer.echo(msgspec.json.format(msgspec.json.encode(report)).decode() if as_json else _told(report))
    if not report.is_clean:
        raise typer.Exit(1)


@audit.command("export")
def export_entries(context: typer.Context, out: Out = None) -> None:
    """Write all entries as they are chained, one JSON object a line, for `verify --entries` at any place.

    Verified with checkpoints from before it: later ones are of entries that are not in it.
    """
    from serving.gateway.audit import actors, reading
    from serving.gateway.cli.opening import journalled
    from serving.gateway.identity.acts import Act, ActKind

    with journalled(settings_of(context)) as (store, journal):
        journal.record(actors.at_command_line(), Act(ActKind.AUDIT_READ, "audit", details={"export": True}))
        _write(out, "wb", (_line(entry) for entry in reading.entries(store)))


@audit.command("checkpoint")
def sign_checkpoints(context: typer.Context, out: Out = None) -> None:
    """Print signed statements of how far every chain has come, to be kept where the database's administrators cannot write."""
    from serving.gateway.audit.checkpoints import written
    from serving.gateway.cli.opening import journal, opened

    with opened(settings_of(context)) as (store, keyring), journal(store, keyring) as own:
        _write(out, "ab", (f"{written(checkpoint)}\n".encode() for checkpoint in own.sign_all()))


@audit.command("key")
def print_key(context: typer.Context) -> None:
    """Print the public key of this installation's checkpoints."""
    from serving.gateway.audit.checkpoints import pem
    from serving.gateway.cli.opening import opened, signer

    with opened(settings_of(context)) as (_, keyring):
        typer.echo(pem(signer(keyring).public_key), nl=False)


@audit.command("prune")
def prune_entries(context: typer.Context) -> None:
    """Remove entries older than `gateway.audit_retention_days`, so that the rest can still be verified. For a job of every day."""
    from serving.gateway.audit import actors, pruning
    from serving.gateway.cli.opening import journal, opened

    settings = settings_of(context)
    if settings.gateway.audit_retention_days is None:
        raise Refusal("The audit is kept for ever: set gateway.audit_retention_days to the days after which it may go.")
    before = time.time() - settings.gateway.audit_retention_days * SECONDS_PER_DAY
    with opened(settings) as (store, keyring), journal(store, keyring) as own:
        pruned = pruning.prune(store, own, actors.at_command_line(), before)
    typer.echo(
        f"Removed {pruned.entries} entries older than {date(before)} UTC, {pruned.chains} chains with all of theirs."
    )


class _EntryLine(msgspec.Struct, frozen=True):
    """An entry in a file."""

    writer: str
    number: int
    written_at_us: int
    kind: str
    body: str
    #: Hexadecimal.
    digest: str


def _line(entry: Entry) -> bytes:
    fields = msgspec.structs.asdict(entry) | {"digest": entry.digest.hex()}
    return msgspec.json.encode(_EntryLine(**fields)) + b"\n"


def _read(path: Path) -> Iterator[Entry]:
    from serving.gateway.audit.chain import Entry

    for number, line in enumerate(_lines(path), start=1):
        try:
            fields = msgspec.structs.asdict(msgspec.json.decode(line, type=_EntryLine))
            yield Entry(**fields | {"digest": bytes.fromhex(str(fields["digest"]))})
        except (ValueError, msgspec.MsgspecError):
            raise Refusal(f"Line {number} of {path} is no entry of an audit.") from None


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(LINE_BYTES_MAX):
                yield line
    except OSError as error:
        raise _unusable(path, error) from None


def _checkpoints(path: Path) -> Iterator[Checkpoint]:
    from serving.gateway.audit.checkpoints import found_in

    yield from found_in(sys.stdin.buffer if str(path) == "-" else _lines(path))


def _write(path: Path | None, mode: str, lines: Iterable[bytes]) -> None:
    if path is None:
        for line in lines:
            sys.stdout.buffer.write(line)
        sys.stdout.flush()
        return
    try:
        with path.open(mode) as file:
            file.writelines(lines)
    except OSError as error:
        raise _unusable(path, error) from None


def _trusted(settings: Settings, path: Path | None) -> list[Ed25519PublicKey]:
    from serving.gateway.audit.checkpoints import trusted_in
    from serving.gateway.cli.opening import opened, signer

    if path is None:
        with opened(settings) as (_, keyring):
            return [signer(keyring).public_key]
    try:
        return trusted_in(path.read_bytes())
    except OSError as error:
        raise _unusable(path, error) from None


def _verified_store(settings: Settings, given: list[Checkpoint], trusted: list[Ed25519PublicKey]) -> Report:
    from serving.gateway.audit import actors, reading, verification
    from serving.gateway.audit.chain import Kind
    from serving.gateway.cli.opening import journalled
    from serving.gateway.identity.acts import Act, ActKind

    with journalled(settings) as (store, journal):
        statements = reading.entries(store, kind=Kind.CHECKPOINT)
        report = verification.verify(reading.entries(store), statements, given, trusted)
        told = {"verify": True, "entries": report.entries, "findings": len(report.findings)}
        journal.record(actors.at_command_line(), Act(ActKind.AUDIT_READ, "audit", details=told))
    return report


def _events(page: Callable[[str | None, int], Page], limit: int) -> Iterator[Event]:
    """The first `limit` events, page by page."""
    after, left = None, limit
    while left:
        found = page(after, min(left, PAGE))
        yield from found.events
        after, left = found.next, left - len(found.events)
        if after is None:
            return


def _told(report: Report) -> str:
    from serving.gateway.audit.verification import moment as when

    since = "" if report.since_us is None else f" since {when(report.since_us)}"
    seen = f"{report.entries} entries in {report.chains} chains{since}, {report.checkpoints} checkpoints"
    verdict = "nothing was changed, removed or added" if report.is_clean else f"{len(report.findings)} findings"
    lines = [f"{seen}: {verdict}.", *(finding.sentence() for finding in report.findings)]
    for tail in report.tails[:TAILS]:
        state = "which has ended" if tail.has_ended else "which runs, or was killed or cut"
        numbers = f"number {tail.first} ({when(tail.since_us)}) to {tail.last}"
        lines.append(f"No checkpoint covers {numbers} of chain {tail.writer}, {state}.")
    if len(report.tails) > TAILS:
        lines.append(f"Nor the ends of {len(report.tails) - TAILS} more chains: --json lists them.")
    return "\n".join(lines)


def _cells(event: Event) -> tuple[str, ...]:
    who = event.by.get("user_ref") or event.by.get("key_id") or event.by.get("os_user") or "-"
    return (date(event.at), event.kind, str(who), event.subject or "-", msgspec.json.encode(event.details).decode())


def _unusable(path: Path, error: OSError) -> Refusal:
    return Refusal(f"The file {path} cannot be used: {(error.strerror or 'unknown error').lower()}.")
