"""Commands: `serving tenants`, `keys`, `store migrate`, `backup` and `restore`.

They work on the database itself, whether or not a gateway runs. Importing this needs no database: SQLAlchemy and psycopg
take most of a second of CPU to import, and most commands of `serving` need neither.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.config import Settings
from serving.errors import Refusal
from serving.gateway.cli.printing import AsJson
from serving.gateway.cli.printing import date as _date
from serving.gateway.cli.printing import print_json as _print_json
from serving.gateway.cli.printing import print_table as _print_table
from serving.gateway.cli.printing import settings_of as _settings
from serving.gateway.identity.keys import id_of
from serving.gateway.nouns import Right, Role

if TYPE_CHECKING:
    from serving.gateway.identity.records import Key, Tenant
    from serving.gateway.identity.registry import Registry

SECONDS_PER_DAY = 86_400.0
SECONDS_PER_HOUR = 3_600.0
#: Keys that one command makes, in one transaction: 10,000 take two seconds of CPU.
KEYS_MAX = 10_000

tenants = typer.Typer(help="The teams that use the API and pay for it.", no_args_is_help=True)
keys = typer.Typer(help="API keys of tenants.", no_args_is_help=True)
store = typer.Typer(help="The database that keeps both.", no_args_is_help=True)


@tenants.command("create")
def create_tenant(context: typer.Context, name: str) -> None:
    """Add a tenant."""
    with _registry(_settings(context)) as registry:
        registry.create_tenant(name)
    typer.echo(f"Tenant {name} created; `serving keys create {name}` makes its first key.")


@tenants.command("list")
def list_tenants(context: typer.Context, as_json: AsJson = False) -> None:
    """List every tenant."""
    with _registry(_settings(context)) as registry:
        found = registry.tenants()
    if as_json:
        _print_json(found)
    else:
        _print_table(("NAME", "ID", "CREATED", "STATE"), [_tenant_cells(tenant) for tenant in found])


@tenants.command("update")
def update_tenant(
    context: typer.Context,
    name: str,
    is_disabled: Annotated[bool | None, typer.Option("--disable/--enable", help="Refuse or admit its calls.")] = None,
    new_name: Annotated[str | None, typer.Option("--rename", help="Its new name.")] = None,
) -> None:
    """Disable, enable or rename a tenant; its keys and its ledger stay."""
    if is_disabled is None and new_name is None:
        raise Refusal("Say what to change: --disable, --enable or --rename NAME.")
    with _registry(_settings(context)) as registry:
        tenant = registry.update_tenant(name, is_disabled=is_disabled, new_name=new_name)
    typer.echo(f"Tenant {tenant.name} is {_state(tenant)}.")


@keys.command("create")
def create_key(
    context: typer.Context,
    tenant: str,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    expires_days: Annotated[float | None, typer.Option("--expires-days", min=0.0, help="Days it works.")] = None,
    count: Annotated[int, typer.Option(min=1, max=KEYS_MAX, help="How many keys, all of them or none.")] = 1,
    allow: Annotated[
        list[Right] | None,
        typer.Option(
            help="A right that other keys lack; `ignore_eos`: generate past an answer's end, for load tests; "
            "`name_users`: say in X-Serving-User who the end user is, as a service for many people does."
        ),
    ] = None,
    role: Annotated[
        Role,
        typer.Option(help="What it may administer: nothing, its tenant, or everything."),
    ] = Role.MEMBER,
    is_quiet: Annotated[bool, typer.Option("--quiet", help="Print the keys alone, one a line.")] = False,
) -> None:
    """Make a key for a tenant and print it, this once."""
    lifetime_s = None if expires_days is None else expires_days * SECONDS_PER_DAY
    from serving.gateway.identity.records import Wanted

    wanted = Wanted(name, tuple(allow or ()), role, lifetime_s=lifetime_s)
    with _registry(_settings(context)) as registry:
        registry.create_keys(tenant, count, wanted, show=lambda key: _print_key(key, is_quiet))


@keys.command("list")
def list_keys(
    context: typer.Context, tenant: Annotated[str | None, typer.Argument()] = None, as_json: AsJson = False
) -> None:
    """List every key, or one tenant's; never the secret part."""
    with _registry(_settings(context)) as registry:
        found = registry.keys(tenant)
    if as_json:
        _print_json(found)
    else:
        header = ("ID", "TENANT", "NAME", "ROLE", "ALLOWED", "CREATED", "LAST USED", "EXPIRES", "STATE")
        _print_table(header, [_key_cells(key, time.time()) for key in found])


@keys.command("update")
def update_key(
    context: typer.Context,
    key_id: str,
    name: Annotated[str | None, typer.Option(help="What the key is for.")] = None,
    role: Annotated[Role | None, typer.Option(help="What it may administer.")] = None,
    allow: Annotated[
        list[Right] | None, typer.Option(help="A right, in place of those it has; repeat for more.")
    ] = None,
    is_plain: Annotated[bool, typer.Option("--allow-nothing", help="Take its rights away.")] = False,
) -> None:
    """Give a key another name or role, or other rights; `serving policies set --key` bounds it."""
    from serving.gateway.identity.records import KeyChange

    allowed = () if is_plain else tuple(allow) if allow else None
    if (name, role, allowed) == (None, None, None):
        raise Refusal("Say what to change: --name, --role, --allow or --allow-nothing.")
    with _registry(_settings(context)) as registry:
        registry.update_key(key_id, KeyChange(name, allowed, role))
    typer.echo(f"Key {key_id} is changed; running gateways know within two seconds.")


@keys.command("rotate")
def rotate_key(
    context: typer.Context,
    key_id: str,
    grace_hours: Annotated[
        float, typer.Option("--grace-hours", min=0.0, help="Hours for which the old key keeps working.")
    ] = 24.0,
    is_quiet: Annotated[bool, typer.Option("--quiet", help="Print the new key alone.")] = False,
) -> None:
    """Make a new key like this one; the old key expires after the grace period."""
    with _registry(_settings(context)) as registry:
        grace_s = grace_hours * SECONDS_PER_HOUR
        registry.rotate_key(key_id, grace_s=grace_s, show=lambda key: _print_key(key, is_quiet))
    if not is_quiet:
        typer.echo(f"The old key {key_id} works for {grace_hours:g} more hours at most.")


@keys.command("revoke")
def revoke_key(context: typer.Context, key_id: str) -> None:
    """Revoke a key now."""
    with _registry(_settings(context)) as registry:
        registry.revoke_key(key_id)
    typer.echo(f"Key {key_id} is revoked; running gateways refuse it within two seconds.")


@store.command("migrate")
def migrate_store(context: typer.Context) -> None:
    """Bring the database to this version's tables, and register the key of store.first_key_file; safe to repeat."""
    from serving.gateway.cli import opening
    from serving.gateway.identity.acts import Act, ActKind
    from serving.gateway.store import schema

    settings = _settings(context)
    first = opening.migrate(settings)
    opening.tell(settings, Act(ActKind.STORE_MIGRATE, "store", details={"revision": schema.REVISION}))
    typer.echo("The database has this version's tables.")
    if first is not None:
        typer.echo(f"Key {first.id} of tenant {first.tenant} is {first.state(time.time())}.")


def backup(
    context: typer.Context, file: Annotated[Path, typer.Argument(help="Where to write; an older backup is replaced.")]
) -> None:
    """Write tenants, keys, prices, pepper, end users, ledger, audit and what is stored to one file, even while gateways run.

    Keep it as secret as the pepper. The bytes of files are left out: copy their folder, or object store, afterwards. So are uploads and batches
    that have not ended.
    """
    from serving.gateway.cli import backup as backups
    from serving.gateway.cli import opening
    from serving.gateway.identity.acts import Act, ActKind

    settings = _settings(context)
    # First: what cannot be told is not copied.
    opening.tell(settings, Act(ActKind.STORE_BACKUP, "store"))
    with opening.opened(settings) as (database, keyring):
        counts = backups.write(database, keyring, file, time.time)
    typer.echo(f"{file} holds {_counted(counts)}.")


def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A file that `serving backup` wrote, from either database.")],
    pepper_out: Annotated[
        Path | None,
        typer.Option("--pepper-out", help="Write the pepper here where store.pepper_file belongs to someone else."),
    ] = None,
) -> None:
    """Fill a new store from a backup; restart its gateways afterwards."""
    from serving.gateway.audit import actors
    from serving.gateway.cli import backup as backups
    from serving.gateway.cli import opening

    settings = _settings(context)
    # Unsigned: the pepper comes with the backup.
    with opening.opened_store(settings) as database, opening.journal(database, None) as journal:
        counts = backups.restore(
            database,
            file,
            backups.line_bytes_max(settings.gateway.max_body_bytes),
            pepper_file=settings.store.pepper_file,
            pepper_out=pepper_out,
            witness=journal.witness(actors.at_command_line()),
        )
    typer.echo(f"Restored {_counted(counts)}.")
    if counts["files"]:
        typer.echo(
            f"The bytes of {counts['files']} files are in no backup: `serving stored check` says whether they are there."
        )
    if pepper_out is not None:
        typer.echo(f"The pepper is in {pepper_out}: no gateway starts before it is where its settings look for it.")
    elif settings.store.first_key_file is not None:
        opening.migrate(settings)


@contextmanager
def _registry(settings: Settings) -> Iterator[Registry]:
    from serving.gateway.cli.opening import registered

    with registered(settings) as registry:
        yield registry


def _print_key(key: str, is_quiet: bool) -> None:
    typer.echo(key if is_quiet else f"Key {id_of(key)}, shown this once:\n\n  {key}\n")
    sys.stdout.flush()  # what finds no room is to be known now


def _tenant_cells(tenant: Tenant) -> tuple[str, ...]:
    return (tenant.name, tenant.id, _date(tenant.created_at), _state(tenant))


def _key_cells(key: Key, now: float) -> tuple[str, ...]:
    allowed = ",".join(key.rights) or "-"
    times = (_date(key.created_at), _date(key.last_used_at), _date(key.expires_at))
    return (key.id, key.tenant, key.name or "-", key.role, allowed, *times, key.state(now))


def _counted(counts: Mapping[str, int]) -> str:
    return f"{counts['tenants']} tenants, {counts['keys']} keys and {counts['ledger']} calls"


def _state(tenant: Tenant) -> str:
    return "enabled" if tenant.disabled_at is None else "disabled"
